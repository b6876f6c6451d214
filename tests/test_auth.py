"""Tokens: what is wrong here lets a stranger move someone's truck, or locks its owner out."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.auth import Authenticator, Identity, make_token
from streamer.errors import ErrorCode, ProtocolError, SettingsError, Unavailable

SECRET = "a secret that is long enough to be one"
LATER = int(time.time()) + 3600


def part(value: Any) -> str:
    """A segment of a JWT, by hand."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims: Any, secret: str | bytes = SECRET, **header: Any) -> str:
    """A JWT signed with HMAC-SHA256, made without the library that checks it."""
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT', **header})}.{part(claims)}"
    key = secret if isinstance(secret, bytes) else secret.encode()
    return f"{signed}.{part(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def refused(authenticator: Authenticator, bad: str) -> str:
    """Why a token is refused; never with what it was."""
    with pytest.raises(ProtocolError) as wrong:
        authenticator.check(bad)
    assert wrong.value.code is ErrorCode.INVALID_TOKEN
    assert wrong.value.message
    assert len(wrong.value.message) < 300
    segments = [segment for segment in (bad, *bad.split(".")) if len(segment) > 8]
    assert not any(segment in wrong.value.message for segment in segments), "a token in a message ends in a log"
    assert wrong.value.__cause__ is None
    return wrong.value.message


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator(SECRET, None)


def test_tokens_of_others(authenticator: Authenticator) -> None:
    """A token made by any other library, as the contract says, is taken; audience and the like don't matter."""
    assert authenticator.check(token({"sub": "user_1", "exp": LATER})) == Identity("user_1", LATER)
    claims = {"sub": "user_1", "exp": LATER + 0.5, "aud": "web", "iss": "https://clerk.example", "azp": "x", "sid": "y"}
    assert authenticator.check(token(claims, kid="k")).clerk_id == "user_1"


def test_a_token_without_an_end(authenticator: Authenticator) -> None:
    """A token of one's own secret may last for ever."""
    assert authenticator.check(token({"sub": "user_1"})) == Identity("user_1", None)


def test_tokens_of_ours(authenticator: Authenticator) -> None:
    """What development and load tests use passes by the same check."""
    identity = authenticator.check(make_token(SECRET, "user_2", 60))
    assert identity.clerk_id == "user_2"
    assert identity.expires is not None
    assert make_token(SECRET, "u", 60, now=1_000.0) == make_token(SECRET, "u", 60, now=1_000.9)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "user_1", "exp": LATER - 7200},
        {"sub": "user_1", "nbf": LATER},
        {"sub": "user_1", "iat": LATER},
        {"sub": "user_1", "exp": "soon"},
        {"sub": "user_1", "exp": None},
        {"sub": "user_1", "exp": float("inf")},
        {"sub": "user_1", "exp": 10**400},
        {"sub": "user_1", "exp": [LATER]},
        {"exp": LATER},
        {"sub": None, "exp": LATER},
        {"sub": 7, "exp": LATER},
        {"sub": {"$ne": ""}, "exp": LATER},
        {},
        [],
        "user_1",
        b"\xff\xfe",
        b"[" * 3000,
    ],
)
def test_claims_that_do_not_count(authenticator: Authenticator, claims: Any) -> None:
    """Expired, not yet valid, of nobody: a good signature is not enough."""
    refused(authenticator, token(claims))


def test_a_little_late(authenticator: Authenticator) -> None:
    """Clocks differ by a few seconds."""
    assert authenticator.check(token({"sub": "u", "exp": int(time.time()) - 1})).clerk_id == "u"


@pytest.mark.parametrize("secret", ["another secret that is long enough too", SECRET[:-1], SECRET + " ", ""])
def test_another_secret(authenticator: Authenticator, secret: str) -> None:
    """Whoever does not know the secret is nobody."""
    refused(authenticator, token({"sub": "user_1", "exp": LATER}, secret))


@pytest.mark.parametrize(
    "alg",
    ["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", "EdDSA", "hs256", "", None, 7, ["HS256"], "x" * 999],
)
def test_other_algorithms(authenticator: Authenticator, alg: Any) -> None:
    """Only the algorithm that is configured counts, whatever a token says of itself."""
    whole = token({"sub": "user_1", "exp": LATER}, alg=alg)
    refused(authenticator, whole)
    refused(authenticator, whole.rpartition(".")[0] + ".")


def test_changed_on_the_way(authenticator: Authenticator) -> None:
    """Claims are what was signed."""
    head, _, signature = token({"sub": "user_1", "exp": LATER}).split(".")
    refused(authenticator, f"{head}.{part({'sub': 'user_2', 'exp': LATER})}.{signature}")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        ".",
        "..",
        "a.b.c",
        "nonsense-that-is-no-token",
        "a" * 5000,
        "é.è.ê",
        "\ud800.\udcff.x",
        "\0",
        f"{part([])}.{part({})}.x",
        f"{part(b'[' * 3000)}.{part({})}.x",
        f"{part({'alg': 'HS256', 'crit': ['x']})}.{part({})}.x",
        f"{part({'alg': 'HS256', 'b64': False})}..x",
        f"{part({'alg': 'HS256', 'kid': 7})}.{part({})}.x",
        f"{part({})}.{part({})}.",
        token({"sub": "user_1"}) + "x",
        token({"sub": "user_1"}) + ".x",
        "Bearer " + token({"sub": "user_1"}),
    ],
)
def test_garbage(authenticator: Authenticator, bad: str) -> None:
    """What is no token is refused as one, and breaks nothing."""
    refused(authenticator, bad)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.binary(max_size=40).map(part) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(part)
    ).map(".".join)
)
def test_anything(bad: str) -> None:
    """Nothing a stranger may send is taken, or raises anything else."""
    refused(Authenticator(SECRET, None), bad)


def test_nothing_configured() -> None:
    """A server without a secret takes no token, not even one signed with an empty one."""
    refused(Authenticator(None, None), token({"sub": "user_1", "exp": LATER}, ""))


# an issuer's keys

KEY = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """A token issuer that publishes its keys on this machine."""

    def __init__(self) -> None:
        key = jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
        self.answer = json.dumps({"keys": [{**key, "kid": "k1", "use": "sig", "alg": "ES256"}]}).encode()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(issuer.answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    issuer = Issuer()
    yield issuer
    issuer.stop()


def issued(claims: dict[str, Any], kid: str = "k1", key: Any = KEY) -> str:
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})


def test_an_issuers_token(issuer: Issuer) -> None:
    """Tokens signed by the issuer's published key are taken; expired, endless and foreign ones are not."""
    authenticator = Authenticator(None, issuer.url)
    assert authenticator.check(issued({"sub": "user_1", "exp": LATER})) == Identity("user_1", LATER)
    assert "exp" in refused(authenticator, issued({"sub": "user_1"}))
    refused(authenticator, issued({"sub": "user_1", "exp": LATER - 7200}))
    refused(authenticator, issued({"sub": "user_1", "exp": LATER}, kid="k2"))
    refused(authenticator, issued({"sub": "user_1", "exp": LATER}, key=ec.generate_private_key(ec.SECP256R1())))


def test_confused_algorithms(issuer: Issuer) -> None:
    """The issuer's public key, which everyone knows, is no secret to sign with."""
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    forged = token({"sub": "user_1", "exp": LATER}, public, kid="k1")
    for secret in (None, SECRET):
        authenticator = Authenticator(secret, issuer.url)
        refused(authenticator, forged)
        refused(authenticator, token({"sub": "user_1", "exp": LATER}, public, kid="k1", alg="ES256"))
        refused(authenticator, token({"sub": "user_1", "exp": LATER}, public, kid="k1", alg="RS256"))


@pytest.mark.parametrize("answer", [b"<html>", b"\xff", b""])
def test_an_issuer_that_does_not_answer_well(issuer: Issuer, answer: bytes) -> None:
    """While the keys can't be read nobody is told that a good token is bad."""
    good, issuer.answer = issuer.answer, answer
    authenticator = Authenticator(None, issuer.url)
    with pytest.raises(Unavailable, match="try again"):
        authenticator.check(issued({"sub": "user_1", "exp": LATER}))
    issuer.answer = good
    assert authenticator.check(issued({"sub": "user_1", "exp": LATER})).clerk_id == "user_1"


def test_an_issuer_that_is_away(issuer: Issuer) -> None:
    """The same when nobody listens."""
    silent = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler, bind_and_activate=False)
    silent.server_bind()
    authenticator = Authenticator(None, f"http://127.0.0.1:{silent.server_port}/")
    try:
        with pytest.raises(Unavailable, match="try again"):
            authenticator.check(issued({"sub": "user_1", "exp": LATER}))
    finally:
        silent.server_close()


def test_an_issuer_that_can_not_be() -> None:
    """A wrong setting is told at the start, not to each user."""
    with pytest.raises(SettingsError, match="STREAMER_JWKS_URL"):
        Authenticator(None, "file:///etc/passwd")
