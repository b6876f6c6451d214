"""The opening handshake: a wrong answer keeps apps out, or opens what the client does not take for a WebSocket."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from streamer.transport.handshake import handshake
from streamer.transport.identify import token_of

VALID = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def answer(method: str | None = "GET", **changed: str | None) -> dict[str, str]:
    """The answer to a valid handshake but for these headers (`_` for `-`); None leaves one out."""
    headers = {**VALID, **{name.replace("_", "-"): value for name, value in changed.items()}}
    given = {name: value for name, value in headers.items() if value is not None}
    return handshake(make_mocked_request(method or "GET", "/v1/watch", headers=given))


def test_the_answer() -> None:
    """The RFC's own example, and nothing that was not offered."""
    assert answer() == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    }
    assert answer(Connection="keep-alive, Upgrade") == answer(Upgrade="WebSocket") == answer()


def test_the_subprotocol() -> None:
    """A browser that brings its token as a subprotocol gets the other one back, never the token."""
    assert answer(Sec_WebSocket_Protocol="bearer.x.y.z, streamer.v1")["Sec-WebSocket-Protocol"] == "streamer.v1"
    assert "Sec-WebSocket-Protocol" not in answer(Sec_WebSocket_Protocol="bearer.x.y.z")


def test_lists_in_several_lines() -> None:
    """A library or proxy may write each item into a line of its own (RFC 9110, 5.3)."""
    lines = CIMultiDict(VALID)
    lines["Connection"] = "keep-alive"
    lines.add("Connection", "Upgrade")
    lines.add("Sec-WebSocket-Protocol", "streamer.v1")
    lines.add("Sec-WebSocket-Protocol", "bearer.x.y.z")
    request = make_mocked_request("GET", "/v1/watch", headers=lines)
    assert handshake(request)["Sec-WebSocket-Protocol"] == "streamer.v1"
    assert token_of(request) == "x.y.z"


def test_compression() -> None:
    """It is agreed on when the client offers it."""
    extension = answer(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
    assert extension["Sec-WebSocket-Extensions"].startswith("permessage-deflate; server_no_context_takeover")
    assert "Sec-WebSocket-Extensions" not in answer(Sec_WebSocket_Extensions="permessage-bzip2")


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "HEAD"},
        {"Upgrade": None},
        {"Upgrade": "h2c"},
        {"Connection": None},
        {"Connection": "close"},
        {"Sec_WebSocket_Key": None},
        {"Sec_WebSocket_Key": "short"},
    ],
)
def test_requests_that_are_no_handshake(changed: dict[str, str | None]) -> None:
    """They are refused with what is missing."""
    with pytest.raises(web.HTTPBadRequest) as refused:
        answer(**changed)
    assert refused.value.text


@pytest.mark.parametrize("version", [None, "8", "14", "13, 8"])
def test_another_version(version: str | None) -> None:
    """The answer names the version that is spoken (RFC 6455, 4.4)."""
    with pytest.raises(web.HTTPUpgradeRequired) as refused:
        answer(Sec_WebSocket_Version=version)
    assert refused.value.headers["Sec-WebSocket-Version"] == "13"
