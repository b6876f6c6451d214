"""Access to the operators' endpoints, `/health` and `/metrics`.

They reveal a server's weak points, so they are for operators only: on their own port (STREAMER_ADMIN_PORT), or on the
main port for this machine and for requests with STREAMER_ADMIN_TOKEN.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from streamer.errors import ErrorCode, ProtocolError
from streamer.transport.client_address import is_loopback
from streamer.transport.identify import has_key

FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")
"""Headers of a reverse proxy: its client is not on this machine, even if the proxy is."""


def operators_only(handler: Handler, token: str | None) -> Handler:
    """Wraps a handler so that it serves this machine and requests with `Authorization: Bearer <token>` only."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        if not (is_local(request) or (token is not None and has_key(request, token))):
            raise ProtocolError(
                ErrorCode.FORBIDDEN,
                f"{request.path} is for operators: request it from the server's machine, with STREAMER_ADMIN_TOKEN as"
                " Authorization: Bearer, or at STREAMER_ADMIN_PORT",
            )
        return await handler(request)

    return guarded


def is_local(request: web.Request) -> bool:
    """Returns whether a request comes from this machine, without a proxy."""
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    if any(name in request.headers for name in FORWARDED):
        return False
    return isinstance(peer, str | bytes) or (isinstance(peer, tuple) and is_loopback(str(peer[0])))
