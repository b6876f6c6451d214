"""How what is stored and shown differs from what was sent. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loadtest.clients.vendor import Ping
from loadtest.engine.database import Stored

SAME = 1e-9
MOST_SHOWN = 15

Contains = Callable[[float, float], bool]
Groups = Mapping[str, Mapping[str, Any]]


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
    return [
        f"{name}: group {group} is held as {held.get(group, {}).get('count', 0)} vendors,"
        f" expected {fresh.get(group, {}).get('count', 0)} as in a fresh snapshot"
        for group in sorted(held.keys() | fresh.keys())
        if held.get(group, {}).get("count", 0) != fresh.get(group, {}).get("count", 0)
    ]


def named(key: tuple[str, int]) -> str:
    """Returns a ping's vendor and time for people."""
    moment = datetime.fromtimestamp(key[1] / 1000, UTC).isoformat(timespec="milliseconds")
    return f"the ping of vendor {key[0]} at {moment}"


def check(found: Sequence[str], *, compared: int, total: int | None = None) -> dict[str, Any]:
    """Returns one check for the report; one that compared nothing fails."""
    problems = list(found) if compared else ["nothing was compared", *found]
    differences = max(len(problems), total or 0) if problems else 0
    return {"ok": not problems, "differences": differences, "shown": problems[:MOST_SHOWN], "compared": compared}
