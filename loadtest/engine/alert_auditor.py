"""Whether each crossing of an alert's edge caused one webhook, about the right place and in time. Pure.

The pings of each alert and vendor are kept as stays: inside, outside, or in the margin, in which either is right. A
webhook names the ping that it is about, so this ping must lie in a stay on its side. A stay that lasted for `stay` ms
without a webhook was missed; a shorter one may have been merged with the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
KINDS = ("missed", "doubled", "invented", "late", "disordered", "changed", "refused")
INSIDE, OUTSIDE, BETWEEN = "inside", "outside", "in the margin"
SIDES = {"vendor.entered": INSIDE, "vendor.left": OUTSIDE}

Fault = tuple[str, str]
"""One of `KINDS`, and what is wrong, with the vendor, the time and what was expected."""


@dataclass(slots=True)
class Stay:
    """Pings in a row on one side of an edge; times are epoch ms, `acked_at` is when an ack was reported."""

    side: str
    first: int
    last: int
    acked_at: float
    timed: bool
    """The delay of the first ping is the server's and not that of a phone without a network."""


class Webhook(NamedTuple):
    """A webhook of an alert, as it came first."""

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
        stay: ms for which a vendor must be on a side before a webhook must say so.
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
        self._judged = set(vendor_ids)
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
        self._webhooks: dict[str, Webhook] = {}
        self._faults: list[Fault] = []
        """Those that are known at once, whatever the vendors' positions."""

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

    def forget(self, vendor_ids: Iterable[str]) -> None:
        """Stops judging these vendors: the server may have taken them off the map."""
        self._judged.difference_update(vendor_ids)

    def take(self, id: str, event: Mapping[str, Any], now: float) -> None:
        """Takes in a webhook with a right signature, received at `now` (epoch ms)."""
        if event["type"] not in SIDES:
            return
        vendor = event["vendor"]
        webhook = Webhook(
            *(id, event["type"], vendor["vendorId"], event["alertId"], event["at"], vendor["timestamp"]),
            *(vendor["lat"], vendor["long"], now),
        )
        before = self._webhooks.get(id)
        if before is None:
            self._webhooks[id] = webhook
            return
        self.repeated += 1
        if before[:8] != webhook[:8]:
            what = f"came again as {webhook[1:8]}; expected the same as before, {before[1:8]}"
            self._faults.append(fault("changed", webhook, what))

    def refuse(self, what: str, now: float) -> None:
        """Takes in a request that is no webhook of these alerts, or is signed wrongly."""
        self._faults.append(("refused", f"{time_of_day(now)} {what}"))

    def judge(self, now: float) -> dict[str, Any]:
        """Returns the check of where vendors were until `now` (epoch ms), and of all webhooks that came."""
        by_pair: dict[tuple[str, str], list[Webhook]] = {}
        for webhook in self._webhooks.values():
            by_pair.setdefault((webhook.alert_id, webhook.vendor_id), []).append(webhook)
        self.delays = Histogram()
        faults, compared = list(self._faults), 0
        for pair in {*by_pair, *self._stays}:
            if pair[1] in self._judged:
                events = by_pair.get(pair, [])
                compared += len(events)
                faults += self._judge(pair, events, self._stays.get(pair, []), now)
        kinds = Counter(kind for kind, _ in faults)
        shown = [f"{kind}: {line}" for kind in kinds for line in quoted(faults, kind)]
        return check(shown, compared=compared, total=len(faults)) | {
            "alerts": len(self._circles),
            "webhooks": len(self._webhooks),
            "repeated": self.repeated,
            **{kind: kinds[kind] for kind in KINDS},
        }

    # one alert and one vendor

    def _judge(self, pair: tuple[str, str], events: list[Webhook], stays: list[Stay], now: float) -> Iterator[Fault]:
        # where a vendor was before its first ping may be known to the server from before this run
        side = None if pair[1] in self._before else OUTSIDE
        since = -1
        for before, webhook in zip([None, *events], events, strict=False):
            wanted = SIDES[webhook.kind]
            if before is not None and webhook.at <= before.at:
                yield fault("disordered", webhook, f"came after one of {time_of_day(before.at)}")
            side = yield from self._missed(pair, stays, side, since, webhook.timestamp, now)
            if side == wanted:
                others = (one for one in stays if one.side not in (side, BETWEEN))
                skipped = next((one for one in others if since < one.first < webhook.timestamp), None)
                if skipped is None:
                    what = f"came, but the one before said {wanted} already: a new id, {webhook.id}"
                    yield fault("doubled", webhook, what)
                else:
                    yield missed(pair, skipped, skipped.last - skipped.first)
            yield from self._check_place(webhook, wanted, stays, since)
            side, since = wanted, max(since, webhook.timestamp)
        yield from self._missed(pair, stays, side, since, inf, now)

    def _missed(
        self, pair: tuple[str, str], stays: list[Stay], side: str | None, since: int, until: float, now: float
    ) -> Generator[Fault, None, str | None]:
        """Yields the stays between two webhooks that should have caused a webhook; returns the side after them."""
        for number, stay in enumerate(stays):
            if stay.side == BETWEEN or stay.last <= since or stay.last >= until:
                continue
            if side is None:
                side = stay.side
            if stay.side == side:
                continue
            lasted = now - stay.acked_at
            if after := next((one for one in stays[number + 1 :] if one.side not in (stay.side, BETWEEN)), None):
                lasted = min(lasted, after.acked_at - stay.acked_at, after.first - stay.first)
            if lasted >= self._stay:
                yield missed(pair, stay, lasted)
                side = stay.side
        return side

    def _check_place(self, webhook: Webhook, wanted: str, stays: list[Stay], since: int) -> Iterator[Fault]:
        """Yields what is wrong with the place and the time of a webhook; records its delay."""
        circle = self._circles[webhook.alert_id]
        away = distance(webhook.lat, webhook.long, circle.lat, circle.long) - circle.radius
        at = f"{webhook.lat}, {webhook.long} as of {time_of_day(webhook.timestamp)}"
        if not (circle.contains(webhook.lat, webhook.long) if wanted == INSIDE else away > MARGIN - ROUNDING):
            yield fault("invented", webhook, f"at {at}; expected none, as that is {away:.0f} m beyond the edge")
            return
        if (webhook.vendor_id, webhook.timestamp) in self._out_of_order:
            return
        stay = next((one for one in stays if one.first <= webhook.timestamp <= one.last), None)
        if stay is None and wanted == OUTSIDE and (not stays or webhook.timestamp < stays[0].first):
            return  # before its first ping near the alert, after an earlier run
        if stay is None or stay.side not in (wanted, BETWEEN):
            where = "nowhere" if stay is None else stay.side
            yield fault("invented", webhook, f"at {at}; expected none, as it was {where} then")
            return
        due: float = stay.first if stay.timed else stay.acked_at
        if since >= stay.first:
            due = webhook.timestamp  # a webhook about an overtaken ping came between
        delay = max(0.0, webhook.received - due)
        self.delays.record(delay / 1000)
        if delay > self._late:
            yield fault("late", webhook, f"came {delay / 1000:.1f} s after it was due at {time_of_day(due)}")


def fault(kind: str, webhook: Webhook, what: str) -> Fault:
    """Returns what is wrong with a webhook."""
    about = f"vendor {webhook.vendor_id}: {webhook.kind} of alert {webhook.alert_id}"
    return kind, f"{time_of_day(webhook.received)} {about} {what}"


def missed(pair: tuple[str, str], stay: Stay, lasted: float) -> Fault:
    """Returns that no webhook came for a stay of a vendor that lasted so many ms."""
    kind = next(kind for kind, side in SIDES.items() if side == stay.side)
    where = f"vendor {pair[1]} was {stay.side} of alert {pair[0]} for {lasted / 1000:.1f} s"
    return "missed", f"{time_of_day(stay.first)} {where}; expected {kind}, which never came"


def quoted(faults: Iterable[Fault], kind: str) -> list[str]:
    """Returns the first faults of a kind."""
    return [line for one, line in faults if one == kind][:SHOWN_OF_A_KIND]


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
