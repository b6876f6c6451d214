"""HTTP answers that every endpoint shares: JSON, and problem documents (RFC 9457) for errors."""

from __future__ import annotations

import time
from itertools import count

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from streamer.counters import Counters
from streamer.errors import HTTP_STATUS, ErrorCode, ProtocolError, Unavailable
from streamer.transport.aiohttp_compat import Handover

log = structlog.get_logger()

MAX_BODY = 1 << 20
"""Bytes of a request's body, uncompressed."""
NO_STORE = {"Cache-Control": "no-store"}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a value as JSON."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json", headers=headers)


def problem(
    code: ErrorCode, message: str, retry_after_ms: int | None = None, *, status: int | None = None, **members: object
) -> web.Response:
    """Return a problem document, with the status of its code unless another is given."""
    status = status or HTTP_STATUS[code]
    message = message.encode(errors="replace").decode()  # it may quote a header that is not UTF-8
    body: dict[str, object] = {"type": "about:blank", "status": status, "title": code, "code": code, "detail": message}
    headers = dict(NO_STORE)
    if retry_after_ms is not None:
        body["retryAfterMs"] = retry_after_ms
        headers["Retry-After"] = str(-(-retry_after_ms // 1000))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        body=orjson.dumps(body | members), status=status, content_type="application/problem+json", headers=headers
    )


def failure(request: web.Request, error: Exception) -> web.Response:
    """Return the problem document for an exception of a handler; an unexpected one is logged and answered with 500."""
    if isinstance(error, ProtocolError):
        return problem(error.code, error.message, error.retry_after_ms)
    if isinstance(error, Unavailable):
        log.debug("a request could not be served", path=request.rel_url.raw_path, cause=str(error))
        return problem(ErrorCode.OVERLOADED, error.public_message, retry_after_ms=1000)
    if isinstance(error, web.HTTPException):
        return refusal(request, error)
    if isinstance(error, web.RequestPayloadError):
        what = type(error.__cause__ or error).__name__
        return problem(ErrorCode.INVALID_MESSAGE, f"the body can't be read, its encoding is invalid: {what}")
    if isinstance(error, ConnectionError):
        # The client is gone. Raised again, this would be a traceback in the log.
        return web.Response(status=400)
    log.error("a request failed", path=request.rel_url.raw_path, error=repr(error), exc_info=error)
    return problem(ErrorCode.INTERNAL, "internal error; see the server's log")


def refusal(request: web.Request, refused: web.HTTPException) -> web.Response:
    """Return the problem document for an HTTP error of aiohttp; a redirect is raised again."""
    status = refused.status
    if status < 400:
        raise refused
    if status == 503:
        return problem(ErrorCode.OVERLOADED, "the server is restarting; try again", retry_after_ms=1000)
    if isinstance(refused, web.HTTPRequestEntityTooLarge):
        message = f"the body is larger than {MAX_BODY} bytes: send it in parts"
    elif isinstance(refused, web.HTTPMethodNotAllowed):
        message = f"{request.path} takes {', '.join(sorted(refused.allowed_methods))}, not {request.method}"
    elif status == 404:
        return problem(ErrorCode.NOT_FOUND, f"there is nothing at {request.path}; the API reference is at /docs")
    else:
        message = refused.text or refused.reason
    answer = problem(ErrorCode.INVALID_MESSAGE, message, status=status)
    for name in ("Allow", "Sec-WebSocket-Version"):
        if name in refused.headers:
            answer.headers[name] = refused.headers[name]
    return answer


def answering(counters: Counters, process: str) -> Middleware:
    """Return a middleware that answers what a handler raises, and counts requests and their duration.

    Connections that stay open are not counted. Every request gets an identifier, unique among all processes, that is in
    each log line about it and about the connection that it opens.
    """
    numbers = count(1)

    @web.middleware
    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        structlog.contextvars.bind_contextvars(connection=f"{process}-{next(numbers)}")
        try:
            response = await handler(request)
        except Exception as error:
            response = failure(request, error)
        if not isinstance(response, Handover):
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "none"
            counters.requests[request.method if request.method in METHODS else "other", route, response.status] += 1
            counters.answered[route].observe(time.monotonic() - began)
        return response

    return answered
