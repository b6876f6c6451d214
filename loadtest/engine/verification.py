"""What must be seen and stored after a replay, worked out from what was sent, and how reality differs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.clients.ping import Ping
from loadtest.engine.database import Stored

LIVE_MAX_AGE = 600_000
AGE_MARGIN = 15_000
SAME = 1e-9
MOST_SHOWN = 10

Contains = Callable[[float, float], bool]


@dataclass(frozen=True, slots=True)
class Live:
    """Each vendor's newest live ping, and the vendors of which nobody outside can say whether they went live."""

    newest: dict[str, Ping]
    unsure: set[str]


def live(
    accepted: Mapping[str, Sequence[Ping]],
    shown_before: Collection[str] = (),
    newest_before: Mapping[str, int] | None = None,
) -> Live:
    """Which vendors went live and where they are now.

    A ping that was over 10 min old when it was due is history only; within 15 s of that limit it depends on how long it
    was under way. A vendor that was shown before, or had a newer fix stored, may still be where an earlier run left it.
    """
    earlier = newest_before or {}
    newest: dict[str, Ping] = {}
    unsure: set[str] = set()
    for vendor_id, pings in accepted.items():
        sure = [ping for ping in pings if ping.due - ping.timestamp <= LIVE_MAX_AGE - AGE_MARGIN]
        if sure and max(sure).timestamp > earlier.get(vendor_id, 0):
            newest[vendor_id] = max(sure)
        elif (
            sure
            or vendor_id in shown_before
            or any(ping.due - ping.timestamp <= LIVE_MAX_AGE + AGE_MARGIN for ping in pings)
        ):
            unsure.add(vendor_id)
    return Live(newest, unsure)


def view_differences(
    view: Mapping[str, Mapping[str, Any]], truth: Live, vendor_ids: Iterable[str], contains: Contains
) -> list[str]:
    """How a watcher's view differs from the truth, one line a vendor; others than `vendor_ids` don't count."""
    found = []
    for vendor_id in vendor_ids:
        if vendor_id in truth.unsure:
            continue
        ping, card = truth.newest.get(vendor_id), view.get(vendor_id)
        if ping is None or not contains(ping.lat, ping.long):
            if card is not None:
                where = "it never went live" if ping is None else f"it is at {ping.lat}, {ping.long}, outside"
                found.append(f"{vendor_id} is shown at {card['lat']}, {card['long']}; {where}")
        elif card is None:
            found.append(f"{vendor_id} is not shown; it is at {ping.lat}, {ping.long}, inside")
        elif (
            not same(card["lat"], ping.lat) or not same(card["long"], ping.long) or card["timestamp"] != ping.timestamp
        ):
            found.append(
                f"{vendor_id} is shown at {card['lat']}, {card['long']} as of {card['timestamp']}; "
                f"its newest fix is {ping.lat}, {ping.long} as of {ping.timestamp}"
            )
    return found


def stored_differences(
    stored: Iterable[Stored], acked: Mapping[str, Sequence[Ping]], rejected: Mapping[str, Sequence[Ping]]
) -> list[str]:
    """How `locations` differs from what was acked: each ping exactly once as it was sent, no rejected one."""
    expected = {(vendor_id, ping.timestamp): ping for vendor_id, pings in acked.items() for ping in pings}
    refused = {(vendor_id, ping.timestamp) for vendor_id, pings in rejected.items() for ping in pings}
    count = Counter[tuple[str, int]]()
    found = []
    for row in stored:
        key = (row.vendor_id, row.timestamp)
        count[key] += 1
        ping = expected.get(key)
        if ping is not None and not (same(row.lat, ping.lat) and same(row.long, ping.long)):
            found.append(f"{key} is stored at {row.lat}, {row.long}; it was sent as {ping.lat}, {ping.long}")
        elif ping is None and key in refused:
            found.append(f"{key} is stored, though it was rejected")
    found += [f"{key} was acked, but is not stored" for key in expected if not count[key]]
    found += [f"{key} is stored {times} times" for key, times in count.items() if times > 1]
    return found


def position_differences(
    positions: Mapping[str, tuple[float | None, float | None]],
    stored_newest: Mapping[str, int],
    acked: Mapping[str, Sequence[Ping]],
) -> list[str]:
    """Which vendors' lat and long are not their newest fix; those with a newer one from elsewhere don't count."""
    found = []
    for vendor_id, pings in acked.items():
        if not pings:
            continue
        newest = max(pings)
        if stored_newest.get(vendor_id, 0) > newest.timestamp:
            continue
        lat, long = positions.get(vendor_id, (None, None))
        if lat is None or long is None or not same(lat, newest.lat) or not same(long, newest.long):
            found.append(f"{vendor_id} is at {lat}, {long} in vendors; its newest fix is {newest.lat}, {newest.long}")
    return found


def same(one: float, other: float) -> bool:
    """Whether two degrees are the same number, give or take how JSON may write it."""
    return abs(one - other) <= SAME


def check(found: Sequence[str]) -> dict[str, Any]:
    """One check's result for the report: whether it held, how many differences, the first of them."""
    return {"ok": not found, "differences": len(found), "shown": list(found[:MOST_SHOWN])}
