"""The HTTP edge for reading: the nearest vendors, a vendor's card and history; problem documents (RFC 9457)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from itertools import count

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from streamer.accounts.dataloader import DataLoader
from streamer.accounts.permissions import owned_vendor
from streamer.accounts.tokens import Authenticator, Identity
from streamer.broker.subscriptions import Subscriptions
from streamer.counters import Counters
from streamer.errors import HTTP_STATUS, ErrorCode, ProtocolError, Unavailable
from streamer.geo.shapes import Circle, distance
from streamer.protocol import history, messages
from streamer.settings import Settings
from streamer.storage.store import Store, VendorRow
from streamer.transport.websocket import token_of

log = structlog.get_logger()

NO_TOKEN = "a token is needed, as Authorization: Bearer or ?token="
MOST_BODY = 1 << 20
"""Bytes of a request's body, unpacked."""
ENCODE_APART = 1000
"""Rows of history beyond which they are encoded beside the event loop, which would stand still for milliseconds."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A value as JSON."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json", headers=headers)


def problem(
    code: ErrorCode, message: str, retry_after_ms: int | None = None, *, status: int | None = None, **members: object
) -> web.Response:
    """A problem document with the status of its code unless another is given, and members of its own."""
    status = status or HTTP_STATUS[code]
    body: dict[str, object] = {"type": "about:blank", "status": status, "title": code, "code": code, "detail": message}
    headers = {"Cache-Control": "no-store"}
    if retry_after_ms is not None:
        body["retryAfterMs"] = retry_after_ms
        headers["Retry-After"] = str(-(-retry_after_ms // 1000))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        body=orjson.dumps(body | members), status=status, content_type="application/problem+json", headers=headers
    )


def failure(request: web.Request, error: Exception) -> web.Response:
    """Every refusal as a problem document with its code; what is no refusal is logged and a plain 500."""
    if isinstance(error, ProtocolError):
        return problem(error.code, error.message, error.retry_after_ms)
    if isinstance(error, Unavailable):
        log.debug("a request could not be served", path=request.rel_url.raw_path, cause=str(error))
        return problem(ErrorCode.OVERLOADED, error.told, retry_after_ms=1000)
    if isinstance(error, web.HTTPException):
        return refusal(request, error)
    if isinstance(error, web.RequestPayloadError):
        what = type(error.__cause__ or error).__name__
        return problem(ErrorCode.INVALID_MESSAGE, f"the body can't be read, as its encoding is broken: {what}")
    if isinstance(error, ConnectionError):
        # The client went away, nobody reads this. Raised on, it would be a traceback in the log for each that does so.
        return web.Response(status=400)
    log.error("a request failed", path=request.rel_url.raw_path, error=repr(error), exc_info=error)
    return problem(ErrorCode.INTERNAL, "the server failed on this request; its log says why")


def refusal(request: web.Request, refused: web.HTTPException) -> web.Response:
    """What aiohttp refuses by itself, as a problem document; no refusal is raised on."""
    status = refused.status
    if status < 400:
        raise refused
    if status == 503:
        return problem(ErrorCode.OVERLOADED, "the server is stopping: come back, it restarts", retry_after_ms=1000)
    if isinstance(refused, web.HTTPRequestEntityTooLarge):
        message = f"the body is larger than {MOST_BODY} bytes: send it in parts"
    elif isinstance(refused, web.HTTPMethodNotAllowed):
        message = f"{request.path} takes {', '.join(sorted(refused.allowed_methods))}, not {request.method}"
    elif status == 404:
        message = f"there is nothing at {request.path}"
    else:
        message = refused.text or refused.reason
    answer = problem(ErrorCode.INVALID_MESSAGE, message, status=status)
    if "Allow" in refused.headers:
        answer.headers["Allow"] = refused.headers["Allow"]
    return answer


def answering(counters: Counters, process: str) -> Middleware:
    """A middleware that answers what a handler raises, and counts requests and how long they took.

    What stays open is not counted. Each connection has a name, unique among all processes, that every line of the log
    about it has. (One middleware, not two: there is a coroutine of each for as long as a socket is open.)
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
        if not isinstance(response, web.WebSocketResponse) and response.content_type != "text/event-stream":
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "none"
            counters.requests[request.method if request.method in METHODS else "other", route, response.status] += 1
            counters.answered[route].observe(time.monotonic() - began)
        return response

    return answered


class HttpQuery:
    """The handlers that are no sockets."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        dataloader: DataLoader,
        watches: Subscriptions,
        authenticator: Authenticator,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._store = store
        self._dataloader = dataloader
        self._watches = watches
        self._authenticator = authenticator
        self._clock = clock

    async def nearby(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors/nearby?lat&long&radius&limit`: cards with `distance` in metres, the nearest first."""
        await self._watcher(request)
        query = {
            name: number(name, value)
            for name, value in request.query.items()
            if name in (*messages.COORDINATES, "radius", "limit")
        }
        lat, long = messages.position(query)
        radius, limit = query.get("radius", 5000.0), query.get("limit", 50.0)
        if not (1 <= limit <= 1000 and limit.is_integer()):
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"limit is a whole number, 1 to 1000, not {limit:g}")
        if not 0 <= radius <= self._settings.max_radius:
            raise ProtocolError(
                ErrorCode.AREA_TOO_LARGE if radius > 0 else ErrorCode.INVALID_AREA,
                f"radius is 0 to {self._settings.max_radius:.0f} m, not {radius}",
            )
        wanted = messages.Watch("nearby", Circle(lat, long, radius), None, False, 0)
        members, _ = await self._watches.members(wanted)
        found = [(distance(lat, long, v.lat, v.long), v) for v in members]
        found.sort(key=lambda pair: (pair[0], pair[1].vendor_id))
        cards = [{**v.card_fields(), "distance": d} for d, v in found[: int(limit)]]
        return json_response({"vendors": cards}, headers={"Cache-Control": "no-store"})

    async def card(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors/{id}`: the card of a vendor that is on the map."""
        await self._watcher(request)
        vendor_id = request.match_info["id"]
        wanted = messages.Watch("card", None, frozenset((vendor_id,)), False, 0)
        members, complete = await self._watches.members(wanted)
        for vendor in members:
            return json_response(vendor.card_fields(), headers={"Cache-Control": "no-store"})
        if not complete:
            message = f"vendor {vendor_id!r} is not on this process, and the others can't be asked just now"
            raise Unavailable(message, message)
        raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"vendor {vendor_id!r} is not on the map")

    async def history(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors/{id}/locations?from&to&limit&cursor`: a page of what is stored; JSON, GeoJSON or GPX."""
        row = await self._past(request, request.match_info["id"])
        accept = ", ".join(request.headers.getall("Accept", ()))
        form = history.negotiate(accept)
        if form is None:
            offered = ", ".join(history.Format)
            message = f"history comes as {offered}; none of these is in Accept: {accept}"
            return problem(ErrorCode.INVALID_MESSAGE, message, status=406)
        tolerance = int(self._settings.future_tolerance * 1000)
        asked = history.decode_range(request.query, self._clock(), tolerance)
        found = await self._store.locations(row.vendor_id, asked.from_ms, asked.to_ms, asked.limit + 1, asked.after)
        rows, cursor = history.cut(found, asked.limit)
        if len(rows) > ENCODE_APART:
            body = await asyncio.to_thread(history.encode, form, row.vendor_id, row.name, rows, cursor)
        else:
            body = history.encode(form, row.vendor_id, row.name, rows, cursor)
        headers = {"Cache-Control": "no-store", "Vary": "Accept"}
        if cursor is not None:
            headers["Link"] = f'<{request.rel_url.raw_path}?{asked.next_query(cursor)}>; rel="next"'
        return web.Response(body=body, content_type=form, headers=headers)

    async def _past(self, request: web.Request, vendor_id: str) -> VendorRow:
        """The vendor whose history may be read: by its owner, or by whoever may watch."""
        if self._settings.history_access == "owner":
            return await owned_vendor(self._dataloader, await identify(request, self._authenticator), vendor_id)
        await self._watcher(request)
        row = await self._dataloader.vendor(vendor_id)
        if row is None:
            raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"there is no vendor {vendor_id!r}")
        return row

    async def _watcher(self, request: web.Request) -> None:
        token = token_of(request)
        if token is not None:
            await self._authenticator.check(token)
        elif self._settings.watch_auth == "required":
            raise ProtocolError(ErrorCode.UNAUTHORIZED, NO_TOKEN)


async def identify(request: web.Request, authenticator: Authenticator, token: str | None = None) -> Identity:
    """Who speaks, by the request's token or by one that came in a way of its own; ProtocolError without a good one."""
    token = token_of(request) or token
    if not token:
        raise ProtocolError(ErrorCode.UNAUTHORIZED, NO_TOKEN)
    return await authenticator.check(token)


def number(name: str, value: str) -> float:
    """A number of a query string."""
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        code = ErrorCode.INVALID_COORDINATES if name in messages.COORDINATES else ErrorCode.INVALID_MESSAGE
        raise ProtocolError(code, f"{name} is a number, not {value!r:.80}")
    return found
