"""Pings over HTTP, from our own clients and from tracker apps: answered after they are committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import structlog
from aiohttp import web

from streamer.accounts.dataloader import card_of
from streamer.accounts.permissions import owned_vendor
from streamer.accounts.tokens import Identity
from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.batcher import Chunk, Rejected
from streamer.ingest.copy_rows import RowEncoder
from streamer.ingest.producer import encoded
from streamer.ingest.rate_limit import Allowance
from streamer.live.fix import Fix
from streamer.protocol import trackers
from streamer.protocol.fields import decode_json, missing_or_invalid, shown
from streamer.protocol.messages import Ping, Pings, decode_pings
from streamer.storage.store import VendorRow
from streamer.transport.identify import identify
from streamer.transport.problem import NO_STORE, json_response, problem
from streamer.transport.services import Services

log = structlog.get_logger()

ROOM_WAIT = 3.0
"""Seconds a request waits for room in a full buffer."""
SETTLE_GRACE = 5.0
"""Seconds beyond a statement's timeout that a request waits for its commit."""
RETRY_AFTER_MS = 2000
MAX_WAITING = 1000
"""Requests that may wait for room in the buffer; others are refused at once."""
BOM = b"\xef\xbb\xbf"
"""The byte order mark that some libraries write before UTF-8."""
MAX_FIELDS = 100
"""Maximum number of fields of a form."""


class Outcome(NamedTuple):
    """The result of a request: how many pings are stored (now or by an earlier request), and which never will be.

    A duplicate is a ping for whose timestamp another position is stored. A rejected ping is {"index", "code",
    "message"}; `time` is when the request was handled, epoch ms.
    """

    stored: int
    duplicates: int
    rejected: list[dict[str, Any]]
    time: int


class HttpIngest:
    """The handlers of pings over HTTP."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._batcher = services.batcher
        self._max_batch = services.bounds.max_batch
        self._live_max_age = int(services.settings.live_max_age * 1000)
        self._settle_wait = services.settings.statement_timeout + SETTLE_GRACE
        self._waiting = 0

    async def locations(self, request: web.Request) -> web.Response:
        """`POST /v1/vendors/{id}/locations`: a ping, an array of pings or {"pings":[…]}."""
        identity = await identify(request, self._services.authenticator)
        items = ping_items(await request.read())
        if len(items) > self._max_batch:
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE, f"{len(items)} pings in one request; the limit is {self._max_batch}"
            )
        asked = self._services.clock()
        row = await owned_vendor(self._services.dataloader, identity, request.match_info["id"])
        outcome = await self._take(row, asked, items)
        body = outcome._asdict()
        if not outcome.duplicates:
            del body["duplicates"]
        return refusal(outcome) or json_response(body, headers=NO_STORE)

    async def owntracks(self, request: web.Request) -> web.Response:
        """`POST /v1/owntracks`: the OwnTracks apps in HTTP mode; answers `[]`.

        The token is the password of Basic auth, the user name may be a vendorId; `?vendorId=` names it too.
        """
        user, password = trackers.basic(request.headers.get("Authorization", "")) or (None, None)
        identity = await identify(request, self._services.authenticator, password)
        items = trackers.owntracks(await request.read())
        asked = self._services.clock()
        row = await self._vendor(identity, request.query.get("vendorId"), user)
        await self.take_tracked(row, asked, items)
        return json_response([])

    async def osmand(self, request: web.Request) -> web.Response:
        """`GET` or `POST /v1/osmand`: the OsmAnd protocol by query or form, or the JSON of several apps.

        The token is `?token=`, the password of Basic auth, or, for an app that can set nothing else, its device
        identifier. Otherwise that identifier may be a vendorId, as `?vendorId=` is.
        """
        body = (await request.read()).removeprefix(BOM)
        is_json = body.lstrip()[:1] in (b"{", b"[")
        items: Iterable[trackers.Item]
        if is_json:
            items, device_id = trackers.tracker_json(body)
        else:
            parameters = {**request.query}
            try:
                parameters = {**form_of(body), **parameters}
                items = trackers.osmand_form(parameters)
            except ProtocolError as wrong:
                items = [wrong]
            device_id = next((parameters[name] for name in ("id", "deviceid", "device") if name in parameters), None)
        user, password = trackers.basic(request.headers.get("Authorization", "")) or (None, None)
        if password is None and trackers.is_token(device_id):
            password, device_id = device_id, None
        identity = await identify(request, self._services.authenticator, password)
        asked = self._services.clock()
        row = await self._vendor(identity, request.query.get("vendorId"), device_id or user)
        await self.take_tracked(row, asked, items)
        return json_response({"result": "ok"}) if is_json and trackers.is_overland(body) else web.Response()

    async def _vendor(self, identity: Identity, named: str | None, called: str | None) -> VendorRow:
        """The vendor that is named, or that the identifier of an app names; otherwise the user's only one."""
        if named is None and called is not None and await self._services.dataloader.vendor(called) is not None:
            named = called
        return await owned_vendor(self._services.dataloader, identity, named)

    async def take_tracked(
        self, row: VendorRow, asked: int, items: Iterable[trackers.Item], *, patient: bool = False
    ) -> int:
        """Stores the pings that can be stored; returns their number.

        A refused ping must not block the app's queue, so it is only counted and logged.

        Args:
            asked: When the row was read: a status that is newer than that is not overwritten.
            patient: Wait for the commit without a timeout.
        """
        stored = 0
        rest = iter(items)
        while batch := list(islice(rest, self._max_batch)):
            outcome = await self._take(row, asked, batch, patient=patient)
            stored += outcome.stored + outcome.duplicates
            if outcome.rejected:
                first = outcome.rejected[0]
                log.info(
                    "refused pings of a tracker",
                    vendor=row.vendor_id,
                    count=len(outcome.rejected),
                    code=first["code"],
                    reason=first["message"],
                )
            await asyncio.sleep(0)  # a batch without a storable ping has not given the event loop a turn yet
        return stored

    async def _take(self, row: VendorRow, asked: int, items: Sequence[Any], *, patient: bool = False) -> Outcome:
        """Show the newest ping if it is fresh, and store all of them."""
        now = self._services.clock()
        allowance = self._services.allowances.of(row.vendor_id, asyncio.get_running_loop().time())
        wait = allowance.wait(asyncio.get_running_loop().time(), self._batcher.contended)
        if wait > 0:
            raise ProtocolError(
                ErrorCode.RATE_LIMITED,
                f"vendor {row.vendor_id!r} exceeds its rate and {allowance.unsettled} of its pings"
                " wait to be stored: send the request again later",
                retry_after_ms=max(1000, round(wait * 1000)),
            )
        pings = decode_pings(items, now, None, self._services.bounds)
        self._services.counters.reject(reject.code for reject in pings.rejected)
        refused: Rejected = {}
        duplicates = 0
        if pings.accepted:
            newest = max(pings.accepted, key=lambda ping: ping.timestamp)
            if newest.timestamp >= now - self._live_max_age:
                self._services.local_vendors.http(row.vendor_id, card_of(row, asked), now)
                self._services.local_vendors.fix(row.vendor_id, Fix(*newest[1:]), now)
            refused, duplicates = await self._stored(row.vendor_id, allowance, pings.accepted, now, patient)
            for code, message in refused.values():
                if code is ErrorCode.VENDOR_NOT_FOUND:
                    self._services.vendors_deleted((row.vendor_id,))
                    raise ProtocolError(code, message)
        rejected = rejections(pings, refused)
        return Outcome(len(items) - len(rejected) - duplicates, duplicates, rejected, now)

    async def _stored(
        self, vendor_id: str, allowance: Allowance, pings: list[Ping], now: int, patient: bool
    ) -> tuple[Rejected, int]:
        """Wait until all pings are committed or rejected; returns those that are, and the number of duplicates.

        Raises ProtocolError when that takes too long, unless `patient`.
        """
        settled: asyncio.Future[tuple[Rejected, int]] = asyncio.get_running_loop().create_future()

        def settle(chunk: Chunk, rejected: Rejected) -> None:
            allowance.unsettled -= len(pings)
            if not settled.done():
                settled.set_result((rejected, chunk.duplicates or 0))

        prompt = allowance.take(len(pings), asyncio.get_running_loop().time())
        seqs, rows, newest = encoded(RowEncoder(vendor_id), pings, now)
        chunk = Chunk(vendor_id, seqs, rows, prompt and newest[0] >= now - self._live_max_age, newest, settle)
        chunk.duplicates = 0
        allowance.unsettled += len(pings)
        if not self._batcher.offer(chunk):
            try:
                await self._put(chunk)
            finally:
                if not chunk.admitted:
                    allowance.unsettled -= len(pings)
        try:
            async with asyncio.timeout(None if patient else self._settle_wait):
                return await settled
        except TimeoutError:
            raise ProtocolError(
                ErrorCode.OVERLOADED,
                f"the pings are not known to be stored after {self._settle_wait:g} s: {self._cause};"
                " send them again, each is stored once however often it is sent",
                retry_after_ms=RETRY_AFTER_MS,
            ) from None

    @property
    def _cause(self) -> str:
        """Why pings wait, without the details of an outage, which name hosts."""
        return "too many wait" if self._batcher.outage is None else "the database does not answer"

    async def _put(self, chunk: Chunk) -> None:
        """Wait for room in the buffer, for a bounded time and with a bounded number of others."""
        if self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                async with asyncio.timeout(ROOM_WAIT):
                    await self._batcher.put(chunk)
                return
            except TimeoutError:
                pass
            finally:
                self._waiting -= 1
        raise ProtocolError(
            ErrorCode.OVERLOADED,
            f"{self._batcher.pings} pings wait to be stored and there is no room: {self._cause};"
            " send the request again later",
            retry_after_ms=RETRY_AFTER_MS,
        )


def ping_items(data: bytes) -> list[Any]:
    """Returns the ping objects of a body: one, an array of them, or {"pings":[…]}."""
    body = decode_json(data, "the body")
    if type(body) is list:
        return body
    if type(body) is not dict:
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE, f'the body is a ping, an array of pings or {{"pings":[…]}}, not {shown(body)}'
        )
    kind = body.get("type")
    if kind == "pings" or (kind is None and "pings" in body):
        pings = body.get("pings")
        if type(pings) is not list:
            raise missing_or_invalid(body, "pings", "an array of pings")
        return pings
    if kind not in (None, "ping"):
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE, f"this endpoint accepts only pings, not a message of type {shown(kind)}"
        )
    return [body]


def form_of(body: bytes) -> dict[str, str]:
    """Returns the fields of an urlencoded form."""
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError as bad:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"the body is not an urlencoded form: {bad}") from None


def rejections(pings: Pings, refused: Mapping[int, tuple[ErrorCode, str]]) -> list[dict[str, Any]]:
    """Returns the rejected pings by their index in the request: each ping has a seq, and seqs rise with the index."""
    reasons = {reject.seq: (reject.code, reject.message) for reject in pings.rejected} | dict(refused)
    seqs = sorted([ping.seq for ping in pings.accepted] + [reject.seq for reject in pings.rejected])
    return [
        {"index": index, "code": reasons[seq][0], "message": reasons[seq][1]}
        for index, seq in enumerate(seqs)
        if seq in reasons
    ]


def refusal(outcome: Outcome) -> web.Response | None:
    """Returns the problem document when nothing of a request can be stored, with the code of its first ping."""
    if outcome.stored or outcome.duplicates or not outcome.rejected:
        return None
    first, count = outcome.rejected[0], len(outcome.rejected)
    detail = first["message"] if count == 1 else f"none of {count} pings can be stored, the first: {first['message']}"
    return problem(first["code"], detail, rejected=outcome.rejected, time=outcome.time)
