"""What the endpoints for backends share: the key, and reading a body."""

from __future__ import annotations

import hmac

import orjson
from aiohttp import web

from streamer.errors import ErrorCode, ProtocolError
from streamer.settings import Settings


def require_backend(request: web.Request, settings: Settings) -> None:
    """Raise ProtocolError when a request has not the backend's key."""
    if settings.backend_key is None:
        raise ProtocolError(ErrorCode.FORBIDDEN, "requests of backends are off: set STREAMER_BACKEND_KEY")
    _, _, given = request.headers.get("Authorization", "").partition(" ")
    if not hmac.compare_digest(given.strip().encode(), settings.backend_key.get_secret_value().encode()):
        raise ProtocolError(ErrorCode.UNAUTHORIZED, "the backend key is needed, as Authorization: Bearer")


async def member(request: web.Request, name: str) -> str:
    """Returns a string that a request's JSON body has under a name."""
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as bad:
        raise ProtocolError(ErrorCode.INVALID_JSON, f"the body is not JSON: {bad}") from None
    value = body.get(name) if isinstance(body, dict) else None
    if value is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, f'the body must be an object with "{name}"')
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"{name} must be a string of 1 to 1024 characters")
    return value
