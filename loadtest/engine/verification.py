"""Differences between what was sent and what is stored and shown, at the end of and during a run. Pure.

An observation holds what a customer saw at a moment. It is judged a few seconds later, when every ping that was sent
before that moment has been acked. What was seen of a vendor must then be the newest ping that had been acked for
`GRACE` ms at the moment, or a later one.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from loadtest.clients.vendor import Acked, Ping
from loadtest.engine.database import Stored
from loadtest.measure.recording import Recorder, time_of_day
from venta_client.view import View

SAME = 1e-9
MOST_SHOWN = 15
NOTHING = "nothing was compared"

Contains = Callable[[float, float], bool]
Groups = Mapping[str, Mapping[str, Any]]
GRACE = 2500.0
"""How late, in ms, an acked ping may be shown before the view is wrong; lateness itself is the freshness gap."""
JUDGED_AFTER = 3000.0
KEPT = 60_000.0
SHOWN_OF_A_KIND = 3
UNCHANGED = 6.5
"""Seconds: counts are true within 5 s, so of two watches that differ for longer, unchanged, one is wrong."""


@dataclass(frozen=True, slots=True)
class Live:
    """Each vendor's newest live ping, and the vendors whose state can't be known from outside."""

    newest: dict[str, Ping]
    unsure: set[str]


def view_differences(
    view: Mapping[str, Mapping[str, Any]], truth: Live, vendor_ids: Iterable[str], contains: Contains
) -> list[str]:
    """Returns how a watcher's view differs from the truth, one line per vendor; only `vendor_ids` are compared."""
    found = []
    for vendor_id in vendor_ids:
        if vendor_id in truth.unsure:
            continue
        ping, card = truth.newest.get(vendor_id), view.get(vendor_id)
        if ping is None or not contains(ping.lat, ping.long):
            if card is not None:
                where = "it never went live" if ping is None else f"it is at {ping.lat}, {ping.long}, outside"
                found.append(f"vendor {vendor_id} is shown at {card['lat']}, {card['long']}; {where}")
        elif card is None:
            found.append(f"vendor {vendor_id} is not shown; it is at {ping.lat}, {ping.long}, inside")
        elif (
            not same(card["lat"], ping.lat) or not same(card["long"], ping.long) or card["timestamp"] != ping.timestamp
        ):
            found.append(
                f"vendor {vendor_id} is shown at {card['lat']}, {card['long']} as of {card['timestamp']}; "
                f"its newest fix is {ping.lat}, {ping.long} as of {ping.timestamp}"
            )
    return found


def stored_differences(
    stored: Iterable[Stored], acked: Mapping[str, Sequence[Ping]], rejected: Mapping[str, Sequence[Ping]]
) -> list[str]:
    """Returns how `locations` differs from what was acked: each ping exactly once as it was sent, no rejected one."""
    expected = {(vendor_id, ping.timestamp): ping for vendor_id, pings in acked.items() for ping in pings}
    refused = {(vendor_id, ping.timestamp) for vendor_id, pings in rejected.items() for ping in pings}
    count = Counter[tuple[str, int]]()
    found = []
    for row in stored:
        key = (row.vendor_id, row.timestamp)
        count[key] += 1
        ping = expected.get(key)
        if ping is not None and not (same(row.lat, ping.lat) and same(row.long, ping.long)):
            found.append(f"{named(key)} is stored at {row.lat}, {row.long}; it was sent as {ping.lat}, {ping.long}")
        elif ping is None and key in refused:
            found.append(f"{named(key)} is stored, though it was rejected")
    found += [
        f"{named(key)} was acked, but is not stored; it was sent as {ping.lat}, {ping.long}"
        for key, ping in expected.items()
        if not count[key]
    ]
    found += [f"{named(key)} is stored {times} times, expected once" for key, times in count.items() if times > 1]
    return found


def position_differences(
    positions: Mapping[str, tuple[float | None, float | None]],
    stored_newest: Mapping[str, int],
    acked: Mapping[str, Sequence[Ping]],
) -> list[str]:
    """Returns the vendors whose lat and long are not their newest fix; those with a newer one of others are skipped."""
    found = []
    for vendor_id, pings in acked.items():
        if not pings:
            continue
        newest = max(pings)
        if stored_newest.get(vendor_id, 0) > newest.timestamp:
            continue
        lat, long = positions.get(vendor_id, (None, None))
        if lat is None or long is None or not same(lat, newest.lat) or not same(long, newest.long):
            found.append(
                f"vendor {vendor_id} is at {lat}, {long} in vendors; its newest fix is {newest.lat}, {newest.long}"
            )
    return found


def same(one: float, other: float) -> bool:
    """Returns whether two degrees are the same number, up to how JSON may write it."""
    return abs(one - other) <= SAME


def count_differences(name: str, held: Groups | None, fresh: Groups | None) -> list[str]:
    """Returns how held counts differ from a fresh snapshot of the same area."""
    if held is None or fresh is None:
        return [f"{name}: no snapshot of counts came"]
    found = []
    for group in sorted(held.keys() | fresh.keys()):
        count, expected = (groups.get(group, {}).get("count", 0) for groups in (held, fresh))
        if count != expected:
            found.append(
                f"{name}: group {group} is held as {count} vendors, expected {expected} as in a fresh snapshot"
            )
    return found


def named(key: tuple[str, int]) -> str:
    """Describes a ping's vendor and time."""
    moment = datetime.fromtimestamp(key[1] / 1000, UTC).isoformat(timespec="milliseconds")
    return f"the ping of vendor {key[0]} at {moment}"


def check(found: Sequence[str], *, compared: int, total: int | None = None) -> dict[str, Any]:
    """Returns one check for the report; one that compared nothing fails."""
    problems = list(found) if compared else [NOTHING, *found]
    differences = max(len(problems), total or 0) if problems else 0
    return {"ok": not problems, "differences": differences, "shown": problems[:MOST_SHOWN], "compared": compared}


def add_checks(checks: dict[str, Any], more: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds the checks of one worker or machine to those of others, as long as any of them compared something."""
    for name, one in more.items():
        before = checks.get(name, {"shown": []})
        lines = [*before["shown"], *one["shown"]]
        found = [line for line in lines if line != NOTHING]
        sums = {key: before.get(key, 0) + value for key, value in one.items() if key not in ("ok", "shown")}
        total = sums["differences"] - (len(lines) - len(found))
        checks[name] = before | sums | check(found, compared=sums["compared"], total=total)


class Position(NamedTuple):
    """A vendor's position as it was shown, or acked: then `acked_at` is when the ack was reported (epoch ms).

    The delay of one that is not `timed` is that of a phone without a network.
    """

    timestamp: int
    lat: float
    long: float
    timed: bool = True
    acked_at: float = 0.0

    def __str__(self) -> str:
        return f"{self.lat}, {self.long} as of {time_of_day(self.timestamp)}"

    def is_in(self, contains: Contains) -> bool:
        """Returns whether it is in an area."""
        return contains(self.lat, self.long)


class Observation(NamedTuple):
    """What a customer saw `at` a moment (epoch ms); `only` is the one vendor of its watch, if it is one."""

    customer: str
    at: float
    contains: Contains
    seen: dict[str, Position]
    only: str | None

    @classmethod
    def of(cls, customer: str, at: float, contains: Contains, view: View, only: str | None = None) -> Observation:
        """Returns an observation of a view now."""
        seen = {name: Position(card["timestamp"], card["lat"], card["long"]) for name, card in view.vendors.items()}
        return cls(customer, at, contains, seen, only)


class Stale(NamedTuple):
    """A freshness gap: a position is shown, while a newer one has been `due` for `gap_ms`; times are epoch ms."""

    customer: str
    vendor: str
    gap_ms: float
    at: float
    shown: int
    due: int


class ViewAuditor:
    """Judges observations; `found` holds the first differences, `total` counts all, `observations` what was judged.

    The freshness gap of every vendor seen is recorded as the delay `freshness`: 0 when the newest position was shown,
    else the time since the oldest position that was not shown yet was due. `measured_from` (epoch ms) is when that
    begins; `stalest` holds the largest gap of each customer.
    """

    def __init__(self, vendor_ids: Sequence[str], recorder: Recorder) -> None:
        self.found: list[str] = []
        self.total = 0
        self.observations = 0
        self.measured_from = 0.0
        self.stalest: dict[str, Stale] = {}
        self._vendor_ids = vendor_ids
        self._recorder = recorder
        self._tracks: dict[str, deque[Position]] = {}
        self._forgotten: set[str] = set()
        self._overdue: dict[int, dict[str, int]] = {}
        self._waiting: deque[Observation] = deque()
        self._accused: set[tuple[str, str, str]] = set()
        self._kinds: Counter[str] = Counter()

    def acked(self, pings: Iterable[Acked], now: float) -> None:
        """Takes in acked pings, reported at `now` (epoch ms)."""
        for vendor, timestamp, lat, long, timed in pings:
            track = self._tracks.setdefault(self._vendor_ids[vendor], deque())
            known = Position(timestamp, lat, long, timed, now)
            if track and timestamp <= track[-1].timestamp:
                # sent again, or the newest of a backlog went first: rare, and put in its place
                ordered = sorted({*track, known})
                track.clear()
                track.extend(ordered)
            else:
                track.append(known)
            while len(track) > 2 and track[1].acked_at < now - KEPT:
                track.popleft()

    def waiting(self, worker: int, vendors: Iterable[tuple[int, int]]) -> None:
        """Takes in which of a worker's vendors have pings without an ack, and until when all are acked (epoch ms)."""
        self._overdue[worker] = {self._vendor_ids[vendor]: until for vendor, until in vendors}

    def forget(self, vendors: Iterable[int]) -> None:
        """Stops checking these vendors: the server may have taken them off the map."""
        self._forgotten.update(self._vendor_ids[vendor] for vendor in vendors)

    def observe(self, observation: Observation) -> None:
        """Keeps an observation to be judged later."""
        self._waiting.append(observation)

    def judge(self, now: float) -> None:
        """Judges every observation that is old enough."""
        while self._waiting and self._waiting[0].at <= now - JUDGED_AFTER:
            self._judge(self._waiting.popleft())

    def _judge(self, one: Observation) -> None:
        self.observations += 1
        gaps: list[int] = []
        names: Collection[str] = self._tracks if one.only is None else [one.only]
        # a ping that was sent before the observation and is not acked yet may have been shown, or moved a vendor away
        unknown = {name for some in self._overdue.values() for name, until in some.items() if until <= one.at}
        for vendor_id in names:
            track = self._tracks.get(vendor_id)
            if track and vendor_id not in self._forgotten and vendor_id not in unknown:
                self._judge_vendor(one, vendor_id, track, one.seen.get(vendor_id), gaps)
        for vendor_id, seen in one.seen.items():
            if not seen.is_in(one.contains):
                what = f"is shown at {seen.lat}, {seen.long}, outside of the watched area"
                self._accuse(one, vendor_id, "outside", what)
            elif one.only is not None and vendor_id != one.only:
                self._accuse(one, vendor_id, "other", f"is shown, but only vendor {one.only} is watched")
        self._recorder.delays("freshness", gaps)

    def _judge_vendor(
        self, one: Observation, vendor_id: str, track: deque[Position], seen: Position | None, gaps: list[int]
    ) -> None:
        must = next((known for known in reversed(track) if known.acked_at <= one.at - GRACE), None)
        if must is None:
            return
        if seen is None:
            possible = [known for known in track if must.timestamp <= known.timestamp <= one.at]
            if all(known.is_in(one.contains) for known in (must, *possible)):
                self._accuse(one, vendor_id, "missing", f"is not shown; expected {must}, inside")
            return
        unseen = next((k for k in track if k.timestamp > seen.timestamp and k.timestamp <= one.at and k.timed), None)
        if one.at >= self.measured_from:
            gap = one.at - unseen.timestamp if unseen is not None else 0.0
            gaps.append(max(0, int(gap * 10)))
            stalest = self.stalest.get(one.customer)
            if unseen is not None and gap > (stalest.gap_ms if stalest is not None else 0.0):
                self.stalest[one.customer] = Stale(
                    one.customer, vendor_id, gap, one.at, seen.timestamp, unseen.timestamp
                )
        sent = next((known for known in track if known.timestamp == seen.timestamp), None)
        if seen.timestamp < must.timestamp:
            what = f"is shown at {seen}; expected {must}, acked {(one.at - must.acked_at) / 1000:.1f} s before"
            if must.is_in(one.contains):
                self._accuse(one, vendor_id, "stale", what)
            else:
                self._accuse(one, vendor_id, "left", f"{what}, outside: it should have left")
        elif sent is not None and not (same(sent.lat, seen.lat) and same(sent.long, seen.long)):
            self._accuse(one, vendor_id, "elsewhere", f"is shown at {seen}; expected {sent.lat}, {sent.long}")
        elif sent is None and track[-1].timestamp > seen.timestamp:
            self._accuse(one, vendor_id, "unknown", f"is shown at {seen}, which was never sent; expected {must}")

    def _accuse(self, one: Observation, vendor_id: str, kind: str, what: str) -> None:
        self.total += 1
        self._kinds[kind] += 1
        key = (one.customer, vendor_id, kind)
        if key not in self._accused and self._kinds[kind] <= SHOWN_OF_A_KIND:
            self._accused.add(key)
            self.found.append(f"{time_of_day(one.at)} {one.customer}: vendor {vendor_id} {what}")


class CountsAuditor:
    """Compares the counts that a customer holds with those of a second, fresh watch of the same box."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._since: dict[tuple[str, str], tuple[Any, float]] = {}

    def observe(self, customer: str, now: float, held: dict[str, Any] | None, fresh: dict[str, Any] | None) -> None:
        """Looks at both at `now` (monotonic s); a group that differs for 6.5 s, unchanged in both, is wrong."""
        if held is None or fresh is None:
            return
        for group in held.keys() | fresh.keys():
            counts = tuple(numbers(one.get(group)) for one in (held, fresh))
            before = self._since.get((customer, group))
            if before is None or before[0] != counts:
                self._since[customer, group] = (counts, now)
            elif counts[0] != counts[1] and now - before[1] > UNCHANGED:
                self._since[customer, group] = (counts, now)
                if len(self.found) < MOST_SHOWN:
                    self.found.append(
                        f"{time_of_day(time.time() * 1000)} {customer}: group {group} is held as {counts[0]} vendors,"
                        f" expected {counts[1]} as in a fresh snapshot (count, open, online)"
                    )


def numbers(group: dict[str, Any] | None) -> tuple[int, int, int]:
    """Returns the counts of a group; zeros of none."""
    return (0, 0, 0) if group is None else (group["count"], group["open"], group["online"])
