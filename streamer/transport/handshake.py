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
    if request.method != "GET" or "websocket" not in map(str.lower, items_of(request, "Upgrade")):
        raise web.HTTPBadRequest(text=f"{request.path} is a WebSocket: GET with Upgrade: websocket is needed")
    if "upgrade" not in map(str.lower, items_of(request, "Connection")):
        raise web.HTTPBadRequest(text="a WebSocket handshake needs Connection: Upgrade; does a proxy remove it?")
    if headers.get("Sec-WebSocket-Version") != "13":
        text = f"Sec-WebSocket-Version is 13, not {headers.get('Sec-WebSocket-Version')!r:.20}"
        raise web.HTTPUpgradeRequired(text=text, headers={"Sec-WebSocket-Version": "13"})
    accept = accept_key(headers.get("Sec-WebSocket-Key", ""))
    if accept is None:
        raise web.HTTPBadRequest(text="Sec-WebSocket-Key is 16 bytes in base64")
    answer = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
    if SUBPROTOCOL in items_of(request, "Sec-WebSocket-Protocol"):
        answer["Sec-WebSocket-Protocol"] = SUBPROTOCOL
    if extension := accept_deflate(",".join(items_of(request, "Sec-WebSocket-Extensions"))):
        answer["Sec-WebSocket-Extensions"] = extension
    return answer


def items_of(request: web.Request, name: str) -> list[str]:
    """Return the items of a header that is a list, which may come in several lines."""
    return [item.strip() for line in request.headers.getall(name, ()) for item in line.split(",")]
