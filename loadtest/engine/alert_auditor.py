"""Truth of alerts: the webhooks that came, compared with where vendors were. Pure.

Of each alert and vendor the pings are kept as runs: inside, outside, or in the margin, in which either is right. A
webhook names the ping that it is about, so it must lie in a run of its side. A run that lasted for `stay` ms without
a webhook was missed; a shorter one may have been merged with the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, inf, radians
from typing import Any, NamedTuple

from loadtest.behaviour import METRES_PER_DEGREE
from loadtest.clients.vendor import Acked
from loadtest.engine.verification import check
from loadtest.measure.recording import Histogram, time_of_day
from streamer.geo.shapes import Circle, distance

MARGIN = 20.0
"""Metres outside of its area at which a vendor may still belong to an alert."""
ROUNDING = 0.1
"""Metres by which the server and this module may differ."""
CELL = 0.01
"""Degrees of the cells by which alerts are found."""
SHOWN_OF_A_KIND = 4

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
        self.received = 0
        self._circles = circles
        self._vendor_ids = vendor_ids
        self._before = known_before
        self._stay = stay
        self._late = late
        self._grid: dict[tuple[int, int], list[str]] = {}
        for alert_id, circle in circles.items():
            for key in cells(circle):
                self._grid.setdefault(key, []).append(alert_id)
        self._newest: dict[str, int] = {}
        self._out_of_order: set[tuple[str, int]] = set()
        self._last: dict[str, tuple[int, float, bool]] = {}
        """Of each vendor the newest ping's time, when it was heard, and whether it was timed."""
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
            if timestamp <= self._newest.get(vendor_id, -1):
                # the newest of a backlog went first, or it was sent again: it may have been live, or not
                self._out_of_order.add((vendor_id, timestamp))
                continue
            self._newest[vendor_id] = timestamp
            near = self._near.setdefault(vendor_id, set())
            here = self._grid.get((int(lat / CELL // 1), int(long / CELL // 1)), ())
            for alert_id in {*near, *here}:
                side = side_of(self._circles[alert_id], lat, long)
                self._extend(alert_id, vendor_id, Stay(side, timestamp, timestamp, now, timed))
                (near.discard if side == OUTSIDE else near.add)(alert_id)
            self._last[vendor_id] = timestamp, now, timed

    def _extend(self, alert_id: str, vendor_id: str, stay: Stay) -> None:
        stays = self._stays.get((alert_id, vendor_id))
        if stays is None:
            stays = self._stays[alert_id, vendor_id] = []
            if vendor_id in self._last and stay.side != OUTSIDE:
                # what came before was not near
                timestamp, heard, timed = self._last[vendor_id]
                stays.append(Stay(OUTSIDE, timestamp, timestamp, heard, timed))
        if stays and stays[-1].side == stay.side:
            stays[-1].last = stay.last
        else:
            stays.append(stay)

    def forget(self, vendors: Iterable[int]) -> None:
        """Stops judging these vendors: the server may have taken them off the map."""
        self.forget_ids(self._vendor_ids[vendor] for vendor in vendors)

    def forget_ids(self, vendor_ids: Iterable[str]) -> None:
        """Stops judging these vendors."""
        self._forgotten.update(vendor_ids)

    def take(self, id: str, event: Mapping[str, Any], now: float) -> None:
        """Takes in a webhook with a right signature, received at `now` (epoch ms)."""
        self.received += 1
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


KINDS = ("missed", "doubled", "invented", "late", "disordered", "changed", "refused")


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
