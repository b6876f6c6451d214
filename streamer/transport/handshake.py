"""The WebSocket opening handshake (RFC 6455, 4.2)."""

from __future__ import annotations

from aiohttp import web

from streamer.protocol.deflate import accept_deflate
from streamer.protocol.frames import accept_key
from streamer.protocol.messages import SUBPROTOCOL


def handshake(request: web.Request) -> dict[str, str]:
    """Return the headers of the answer to a handshake.

    Raises:
        web.HTTPBadRequest: the request is not a valid WebSocket handshake.
        web.HTTPUpgradeRequired: it asks for another version of the protocol.
    """
    headers = request.headers
    if request.method != "GET" or "websocket" not in _items(headers.get("Upgrade", "").lower()):
        raise web.HTTPBadRequest(text=f"{request.path} is a WebSocket: GET with Upgrade: websocket is needed")
    if "upgrade" not in _items(headers.get("Connection", "").lower()):
        raise web.HTTPBadRequest(text="a WebSocket handshake needs Connection: Upgrade; does a proxy remove it?")
    if headers.get("Sec-WebSocket-Version") != "13":
        text = f"Sec-WebSocket-Version is 13, not {headers.get('Sec-WebSocket-Version')!r:.20}"
        raise web.HTTPUpgradeRequired(text=text, headers={"Sec-WebSocket-Version": "13"})
    accept = accept_key(headers.get("Sec-WebSocket-Key", ""))
    if accept is None:
        raise web.HTTPBadRequest(text="Sec-WebSocket-Key is 16 bytes in base64")
    answer = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
    if SUBPROTOCOL in _items(",".join(headers.getall("Sec-WebSocket-Protocol", ()))):
        answer["Sec-WebSocket-Protocol"] = SUBPROTOCOL
    if extension := accept_deflate(",".join(headers.getall("Sec-WebSocket-Extensions", ()))):
        answer["Sec-WebSocket-Extensions"] = extension
    return answer


def _items(header: str) -> list[str]:
    return [item.strip() for item in header.split(",")]
