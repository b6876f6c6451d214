"""The log: what must never be in it."""

from __future__ import annotations

import pytest

from streamer.auth import make_token
from streamer.logs import without_tokens
from tests.issuer import EC, RSA, signed


@pytest.mark.parametrize(
    "token", [make_token("x" * 32, "user_1", 60), signed(EC["e1"]), signed(RSA["r1"]), signed(EC["e1"]) + "."]
)
def test_whatever_looks_like_a_token_is_taken_out(token: str) -> None:
    """Should a token come into a line by a way that nobody thought of, it does not leave in it."""
    for line in (token, f"GET /v1/vendor?token={token}&x=1", f'{{"a":"{token}"}}', f"b'bearer.{token}\\x00'"):
        told = without_tokens(None, "info", line)
        assert "<token>" in told
        assert not any(part in told for part in token.split(".") if part)
        assert told.replace("<token>", "") == line.replace(token.rstrip("."), "")


def test_the_rest_stays() -> None:
    """What is no token is told as it is."""
    for line in ("keyJack.b", "eyJ", "an event", "eyJ.x", "a key.eyJoin"):
        assert without_tokens(None, "info", line) == line
