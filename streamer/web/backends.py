"""Functions of the endpoints for backends: checking the key, reading a body."""

from __future__ import annotations

from aiohttp import web

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.fields import decode_json
from streamer.settings import Settings
from streamer.transport.identify import has_key


def require_backend(request: web.Request, settings: Settings) -> None:
    """Raise ProtocolError unless a request has the backend's key."""
    if settings.backend_key is None:
        raise ProtocolError(ErrorCode.FORBIDDEN, "endpoints for backends are off: set STREAMER_BACKEND_KEY")
    if not has_key(request, settings.backend_key.get_secret_value()):
        raise ProtocolError(ErrorCode.UNAUTHORIZED, "the backend key is needed, as Authorization: Bearer")


async def member(request: web.Request, name: str) -> str:
    """Returns a string member of a request's JSON body."""
    body = decode_json(await request.read(), "the body")
    value = body.get(name) if isinstance(body, dict) else None
    if value is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, f'the body must be an object with "{name}"')
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"{name} must be a string of 1 to 1024 characters")
    return value
