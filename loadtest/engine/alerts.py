"""Alerts of a run: created before it begins, their webhooks received, and compared with where vendors were.

The comparison is pure. Of each alert and vendor the pings are kept as runs: inside, outside, or in the margin, in which
either is right. A webhook names the ping that it is about, so it must lie in a run of its side. A run that lasted for
`stay` ms without a webhook was missed; a shorter one may have been merged with the next.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import cos, inf, radians
from random import Random
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import orjson
from aiohttp import web

from loadtest import RunFailed
from loadtest.behaviour import METRES_PER_DEGREE
from loadtest.clients.target import Identity, Target, mint
from loadtest.clients.vendor import Acked
from loadtest.engine.scenario import Scenario
from loadtest.engine.verification import check
from loadtest.measure.recording import Histogram, time_of_day
from streamer.geo.shapes import Circle, distance
from venta_client.webhooks import WebhookRefused, verify

AT_ONCE = 16
BEGUN_WITHIN = 120.0
LOOK_EVERY = 0.25
QUIET = 2.0
"""Seconds between two looks for webhooks that are still on their way."""
EVENTS = ["entered", "left"]
FATAL = (400, 401, 403, 404, 422)

T = TypeVar("T")
U = TypeVar("U")

MARGIN = 20.0
"""Metres outside of its area at which a vendor may still belong to an alert."""
ROUNDING = 0.1
"""Metres by which the server and this module may differ."""
CELL = 0.01
"""Degrees of the cells by which alerts are found."""
SHOWN_OF_A_KIND = 4

KINDS = ("missed", "doubled", "invented", "late", "disordered", "changed", "refused")
INSIDE, OUTSIDE, BETWEEN = "inside", "outside", "in the margin"
SIDES = {"vendor.entered": INSIDE, "vendor.left": OUTSIDE}


@dataclass(slots=True)
class Stay:
    """Pings in a row on one side of an edge; times are epoch ms, `heard` is when an ack was reported."""

    side: str
    first: int
    last: int
    heard: float
    timed: bool
    """The delay of the first ping is the server's and not that of a phone without a network."""


class Told(NamedTuple):
    """A webhook as it came first."""

    id: str
    kind: str
    vendor_id: str
    alert_id: str
    at: int
    timestamp: int
    lat: float
    long: float
    received: float


class AlertAuditor:
    """Judges the webhooks of alerts on circles; `delays` holds how long after its ping each one came.

    Args:
        circles: the areas by the ids of their alerts.
        vendor_ids: by the indices that workers report.
        known_before: vendors that may have been on the map already, anywhere.
        stay: ms for which a vendor must be on a side before it must be told.
        late: ms after which a webhook is late.
    """

    def __init__(
        self,
        circles: Mapping[str, Circle],
        vendor_ids: Sequence[str],
        known_before: Collection[str],
        stay: float,
        late: float,
    ) -> None:
        self.delays = Histogram()
        self.repeated = 0
        """Webhooks that came again with the same id, as they may."""
        self._circles = circles
        self._vendor_ids = vendor_ids
        self._before = known_before
        self._stay = stay
        self._late = late
        self._grid: dict[tuple[int, int], list[str]] = {}
        for alert_id, circle in circles.items():
            for key in cells(circle):
                self._grid.setdefault(key, []).append(alert_id)
        self._out_of_order: set[tuple[str, int]] = set()
        self._last: dict[str, Stay] = {}
        """Each vendor's newest ping, as if outside."""
        self._stays: dict[tuple[str, str], list[Stay]] = {}
        self._near: dict[str, set[str]] = {}
        """Alerts by vendor in which it is not surely outside."""
        self._forgotten: set[str] = set()
        self._told: dict[str, Told] = {}
        self._faults: list[tuple[str, str]] = []

    def acked(self, pings: Iterable[Acked], now: float) -> None:
        """Takes in acked pings, reported at `now` (epoch ms)."""
        for vendor, timestamp, lat, long, timed in pings:
            vendor_id = self._vendor_ids[vendor]
            before = self._last.get(vendor_id)
            if before is not None and timestamp <= before.last:
                # the newest of a backlog went first, or it was sent again: it may have been live, or not
                self._out_of_order.add((vendor_id, timestamp))
                continue
            near = self._near.setdefault(vendor_id, set())
            here = self._grid.get((int(lat / CELL // 1), int(long / CELL // 1)), ())
            for alert_id in {*near, *here}:
                side = side_of(self._circles[alert_id], lat, long)
                stays = self._stays.setdefault((alert_id, vendor_id), [])
                if not stays and before is not None and side != OUTSIDE:
                    stays.append(replace(before))  # what came before was not near
                if stays and stays[-1].side == side:
                    stays[-1].last = timestamp
                else:
                    stays.append(Stay(side, timestamp, timestamp, now, timed))
                (near.discard if side == OUTSIDE else near.add)(alert_id)
            self._last[vendor_id] = Stay(OUTSIDE, timestamp, timestamp, now, timed)

    def forget(self, vendors: Iterable[int]) -> None:
        """Stops judging these vendors: the server may have taken them off the map."""
        self.forget_ids(self._vendor_ids[vendor] for vendor in vendors)

    def forget_ids(self, vendor_ids: Iterable[str]) -> None:
        """Stops judging these vendors."""
        self._forgotten.update(vendor_ids)

    def take(self, id: str, event: Mapping[str, Any], now: float) -> None:
        """Takes in a webhook with a right signature, received at `now` (epoch ms)."""
        if event["type"] not in SIDES:
            return
        vendor = event["vendor"]
        told = Told(
            *(id, event["type"], vendor["vendorId"], event["alertId"], event["at"], vendor["timestamp"]),
            *(vendor["lat"], vendor["long"], now),
        )
        before = self._told.get(id)
        if before is None:
            self._told[id] = told
            return
        self.repeated += 1
        if before._replace(received=now) != told:
            self._accuse("changed", told, f"came again as {told[1:8]}; expected the same as before, {before[1:8]}")

    def refuse(self, what: str, now: float) -> None:
        """Takes in a request that is no webhook of these alerts, or is signed wrongly."""
        self._faults.append(("refused", f"{time_of_day(now)} {what}"))

    def judge(self, now: float) -> dict[str, Any]:
        """Returns the check of where vendors were until `now` (epoch ms), and of all webhooks that came."""
        by_pair: dict[tuple[str, str], list[Told]] = {}
        for told in self._told.values():
            by_pair.setdefault((told.alert_id, told.vendor_id), []).append(told)
        known = set(self._vendor_ids)
        compared = 0
        lasting, self._faults = self._faults, list(self._faults)
        self.delays = Histogram()
        for pair in {*by_pair, *self._stays}:
            if pair[1] in self._forgotten or pair[1] not in known:
                continue
            events = by_pair.get(pair, [])
            compared += len(events)
            self._judge(pair, events, self._stays.get(pair, []), now)
        faults, self._faults = self._faults, lasting
        kinds = Counter(kind for kind, _ in faults)
        shown: list[str] = []
        for kind in kinds:
            shown += [f"{kind}: {line}" for one, line in faults if one == kind][:SHOWN_OF_A_KIND]
        return check(shown, compared=compared, total=len(faults)) | {
            "alerts": len(self._circles),
            "webhooks": len(self._told),
            "repeated": self.repeated,
            **{kind: kinds[kind] for kind in KINDS},
        }

    # one alert and one vendor

    def _judge(self, pair: tuple[str, str], events: list[Told], stays: list[Stay], now: float) -> None:
        # where a vendor was before its first ping may be known to the server from before this run
        side = None if pair[1] in self._before else OUTSIDE
        since = -1
        for number, told in enumerate(events):
            wanted = SIDES[told.kind]
            if number and told.at <= events[number - 1].at:
                self._accuse("disordered", told, f"came after one of {time_of_day(events[number - 1].at)}")
            side = self._missed(pair, stays, side, since, told.timestamp, now)
            if side == wanted:
                skipped = next(
                    (one for one in stays if one.side not in (side, BETWEEN) and since < one.first < told.timestamp),
                    None,
                )
                if skipped is None:
                    self._accuse("doubled", told, f"came, but it was told to be {wanted} already: a new id, {told.id}")
                else:
                    self._accuse_missed(pair, skipped, skipped.last - skipped.first)
            self._check_place(told, wanted, stays, since)
            side, since = wanted, max(since, told.timestamp)
        self._missed(pair, stays, side, since, None, now)

    def _missed(
        self, pair: tuple[str, str], stays: list[Stay], side: str | None, since: int, until: int | None, now: float
    ) -> str | None:
        """Accuses for stays between two webhooks that should have been told; returns the side after them."""
        for number, stay in enumerate(stays):
            if stay.side == BETWEEN or stay.last <= since or (until is not None and stay.last >= until):
                continue
            if side is None:
                side = stay.side
            if stay.side == side:
                continue
            after = next((one for one in stays[number + 1 :] if one.side not in (stay.side, BETWEEN)), None)
            lasted = min(
                now - stay.heard, inf if after is None else min(after.heard - stay.heard, after.first - stay.first)
            )
            if lasted < self._stay:
                continue
            self._accuse_missed(pair, stay, lasted)
            side = stay.side
        return side

    def _check_place(self, told: Told, wanted: str, stays: list[Stay], since: int) -> None:
        circle = self._circles[told.alert_id]
        away = distance(told.lat, told.long, circle.lat, circle.long) - circle.radius
        at = f"{told.lat}, {told.long} as of {time_of_day(told.timestamp)}"
        if not (circle.contains(told.lat, told.long) if wanted == INSIDE else away > MARGIN - ROUNDING):
            self._accuse("invented", told, f"at {at}; expected none, as that is {away:.0f} m beyond the edge")
            return
        if (told.vendor_id, told.timestamp) in self._out_of_order:
            return
        stay = next((one for one in stays if one.first <= told.timestamp <= one.last), None)
        if stay is None and wanted == OUTSIDE and (not stays or told.timestamp < stays[0].first):
            return  # before its first ping near the alert, after an earlier run
        if stay is None or stay.side not in (wanted, BETWEEN):
            where = "nowhere" if stay is None else stay.side
            self._accuse("invented", told, f"at {at}; expected none, as it was {where} then")
            return
        due: float = stay.first if stay.timed else stay.heard
        if since >= stay.first:
            due = told.timestamp  # a webhook about an overtaken ping came between
        delay = max(0.0, told.received - due)
        self.delays.record(delay / 1000)
        if delay > self._late:
            self._accuse("late", told, f"came {delay / 1000:.1f} s after it was due at {time_of_day(due)}")

    def _accuse_missed(self, pair: tuple[str, str], stay: Stay, lasted: float) -> None:
        kind = next(kind for kind, side in SIDES.items() if side == stay.side)
        line = (
            f"{time_of_day(stay.first)} vendor {pair[1]} was {stay.side} of alert {pair[0]} for {lasted / 1000:.1f} s"
        )
        self._faults.append(("missed", f"{line}; expected {kind}, which never came"))

    def _accuse(self, kind: str, told: Told, what: str) -> None:
        line = f"{time_of_day(told.received)} vendor {told.vendor_id}: {told.kind} of alert {told.alert_id} {what}"
        self._faults.append((kind, line))


def side_of(circle: Circle, lat: float, long: float) -> str:
    """Returns on which side of the edge of an alert a position is."""
    if circle.contains(lat, long):
        return INSIDE
    away = distance(lat, long, circle.lat, circle.long) - circle.radius
    return OUTSIDE if away > MARGIN + ROUNDING else BETWEEN


def cells(circle: Circle) -> Iterable[tuple[int, int]]:
    """Yields the cells that a circle with its margin touches."""
    spread = (circle.radius + MARGIN + 1.0) / METRES_PER_DEGREE
    wide = spread / max(0.01, cos(radians(abs(circle.lat) + spread)))
    for row in range(int((circle.lat - spread) / CELL // 1), int((circle.lat + spread) / CELL // 1) + 1):
        for column in range(int((circle.long - wide) / CELL // 1), int((circle.long + wide) / CELL // 1) + 1):
            yield row, column


class Alerts:
    """The alerts of one machine's part of a run, and the receiver of their webhooks; an async context manager.

    What vendors' workers report as acked goes to `auditor`, which is there after `begin`.
    """

    def __init__(
        self, target: Target, scenario: Scenario, identities: Sequence[Identity], secret: str, seed: int
    ) -> None:
        self.auditor: AlertAuditor | None = None
        self._target = target
        self._scenario = scenario
        self._identities = identities
        self._secret = secret
        self._random = Random(f"{seed} alerts")
        self._secrets: dict[str, str] = {}
        self._owners: dict[str, Identity] = {}
        self._offset = 0.0
        self._url = ""

    async def __aenter__(self) -> Self:
        host, _, port = self._scenario.alerts.listen.rpartition(":")
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as failed:
            await self._runner.cleanup()
            raise RunFailed(f"the receiver can't listen on {self._scenario.alerts.listen}: {failed}") from None
        self._url = f"http://{host}:{self._runner.addresses[0][1]}/hook"
        self._session = aiohttp.ClientSession(self._target.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await each(self._owners.items(), self._delete)
        finally:
            await self._session.close()
            await self._runner.cleanup()

    async def begin(self, offset: float) -> None:
        """Creates the alerts and waits until all are looked at; `offset` is the server's clock less ours, in ms."""
        self._offset = offset
        wanted, random = self._scenario.alerts, self._random
        city = self._scenario.disc.wider(wanted.spread)
        made = []
        for number in range(wanted.count):
            lat, long = city.degrees(*city.anywhere(random))
            circle = Circle(lat, long, round(random.uniform(*wanted.radius)))
            made.append((self._identities[number % len(self._identities)], circle))
        circles = dict(await each(made, self._create))
        seen = await each(self._identities, self._on_map)
        self.auditor = AlertAuditor(
            circles,
            [one.vendor_id for one in self._identities],
            {vendor_id for vendor_id in seen if vendor_id is not None},
            wanted.stay_ms,
            wanted.late_ms,
        )
        await each(self._owners.items(), self._begun)

    def acked(self, report: dict[str, Any]) -> None:
        """Takes in what a vendors' worker reports as acked."""
        if self.auditor is not None:
            self.auditor.acked(report["pings"], self._now())
            self.auditor.forget(report["unsure"])

    async def judged(self, unsure: Iterable[str]) -> dict[str, Any]:
        """Waits for what is still on its way; returns the check. Nothing is said of the vendors in `unsure`."""
        assert self.auditor is not None
        self.auditor.forget_ids(unsure)
        settled = self._now()
        until = settled + self._scenario.alerts.late_ms
        await asyncio.sleep(QUIET)  # for webhooks that should not come
        check = self.auditor.judge(settled)
        while check["missed"] and self._now() < until:
            await asyncio.sleep(QUIET)
            check = self.auditor.judge(settled)
        return check

    def delays(self) -> dict[str, Histogram]:
        """Returns how long after its ping each webhook came."""
        return {"alert": self.auditor.delays} if self.auditor is not None and len(self.auditor.delays) else {}

    # inside

    def _now(self) -> float:
        return time.time() * 1000 + self._offset

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        now = self._now()
        if self.auditor is None:
            return web.Response(status=503)
        try:
            alert_id = orjson.loads(body)["alertId"]
            verify(self._secrets[alert_id], request.headers, body, now=now / 1000)
        except (orjson.JSONDecodeError, KeyError, TypeError, WebhookRefused) as refused:
            self.auditor.refuse(f"{request.headers.get('webhook-id')} was not signed by the server: {refused!r}", now)
            return web.Response(status=400)
        self.auditor.take(request.headers["webhook-id"], orjson.loads(body), now)
        return web.Response(status=204)

    async def _create(self, wanted: tuple[Identity, Circle]) -> tuple[str, Circle]:
        owner, circle = wanted
        area = {"center": {"lat": circle.lat, "long": circle.long}, "radius": circle.radius}
        asked = {"area": area, "on": EVENTS, "quiet": 0, "url": self._url}
        answered = await self._request("POST", "/v1/alerts", owner, asked)
        self._secrets[answered["id"]] = answered["secret"]
        self._owners[answered["id"]] = owner
        return answered["id"], circle

    async def _begun(self, alert: tuple[str, Identity]) -> None:
        until = time.monotonic() + BEGUN_WITHIN
        while "startedAt" not in await self._request("GET", f"/v1/alerts/{alert[0]}", alert[1]):
            if time.monotonic() > until:
                raise RunFailed(f"the alert {alert[0]} has not begun within {BEGUN_WITHIN:g} s; read the server's log")
            await asyncio.sleep(LOOK_EVERY)

    async def _delete(self, alert: tuple[str, Identity]) -> None:
        with suppress(RunFailed):  # the server is gone, or the alert is
            await self._request("DELETE", f"/v1/alerts/{alert[0]}", alert[1])

    async def _on_map(self, identity: Identity) -> str | None:
        """Returns the vendor's id when it is on the map already."""
        found = await self._request("GET", f"/v1/vendors/{identity.vendor_id}", identity, known=404)
        return identity.vendor_id if found else None

    async def _request(
        self, method: str, path: str, owner: Identity, body: dict[str, Any] | None = None, known: int = 0
    ) -> dict[str, Any]:
        """Returns the answer, an empty one for the status `known`; tries for some seconds what may pass."""
        pause = 0.2
        while True:
            token = mint(owner.clerk_id, self._secret, time.time(), self._scenario.token_lifetime)
            try:
                async with self._session.request(
                    method, path, json=body, headers={"Authorization": f"Bearer {token}"}
                ) as answer:
                    if answer.status == known or answer.status == 204:
                        return {}
                    answered: dict[str, Any] = await answer.json(content_type=None)
                    if answer.ok:
                        return answered
                    said = f"{answer.status} {answered.get('code')}: {answered.get('detail')}"
                    fatal = answer.status in FATAL
            except (aiohttp.ClientError, OSError, orjson.JSONDecodeError) as failed:
                said, fatal = repr(failed), False
            if fatal or pause > 5:
                raise RunFailed(
                    f"{method} {path} was answered {said}. Alerts need STREAMER_ALERT_KEY, and "
                    f"STREAMER_ALERT_DEVELOPMENT_HOSTS with {self._scenario.alerts.listen.rpartition(':')[0]}"
                )
            await asyncio.sleep(pause)
            pause *= 2


async def each(items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, U]]) -> list[U]:
    """Does the same for each, some at once; returns the results in order."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> U:
        async with free:
            return await work(item)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item)) for item in items]
    return [task.result() for task in tasks]
