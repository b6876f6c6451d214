"""What is stored and shown is compared with what was sent: every fault is found, and nothing else is reported."""

from __future__ import annotations

from typing import Any

from loadtest.clients.vendor import Ping
from loadtest.engine.database import Stored
from loadtest.engine.verification import (
    Live,
    check,
    count_differences,
    position_differences,
    stored_differences,
    view_differences,
)

NOW = 1_732_467_600_000
MINUTE = 60_000


def ping(age: int, lat: float = 52.0) -> Ping:
    """A ping of this age when it was sent."""
    return Ping(NOW - age, lat, 21.0, NOW)


def card(lat: float, timestamp: int) -> dict[str, Any]:
    """What a view holds of a vendor."""
    return {"lat": lat, "long": 21.0, "timestamp": timestamp}


def north(lat: float, long: float) -> bool:
    """An area."""
    return lat >= 52


def live(sent: dict[str, list[Ping]], unsure: set[str]) -> Live:
    """The truth: each vendor's newest ping, but those that nobody knows."""
    return Live({name: max(pings) for name, pings in sent.items() if name not in unsure}, unsure)


def test_a_right_view_has_no_differences() -> None:
    """What is outside, never live, unsure or not ours is not missed and not minded."""
    sent = {
        "in": [ping(5, 53.0), ping(2, 52.5)],
        "out": [ping(1, 51.0)],
        "close": [ping(10 * MINUTE)],
    }
    view = {"in": card(52.5, NOW - 2), "close": card(52.0, NOW), "stranger": card(52.0, NOW)}
    assert view_differences(view, live(sent, {"close"}), sent, north) == []


def test_every_kind_of_wrong_view_is_found() -> None:
    """One line each: shown though outside, not shown, an older position, the wrong place, shown though never live."""
    sent = {
        "outside": [ping(1, 51.0)],
        "missing": [ping(1, 52.0)],
        "older": [ping(2, 52.0), ping(1, 52.0)],
        "elsewhere": [ping(1, 52.0)],
    }
    view = {
        "outside": card(52.0, NOW - 1),
        "older": card(52.0, NOW - 2),
        "elsewhere": card(52.000001, NOW - 1),
        "never live": card(52.0, NOW - 60 * MINUTE),
    }
    found = view_differences(view, live(sent, set()), [*sent, "never live"], north)
    assert [line.removeprefix("vendor ").partition(" is ")[0] for line in found] == [*sent, "never live"]


def test_stored_rows_are_compared_one_by_one() -> None:
    """Lost, doubled, altered and wrongly accepted pings are told apart; rows of others are not looked at."""
    acked = {"a": [ping(1), ping(2), ping(3), ping(4)]}
    rejected = {"a": [ping(5)]}
    rows = [
        Stored("a", NOW - 1, 52.0, 21.0),
        Stored("a", NOW - 2, 52.0, 21.0),
        Stored("a", NOW - 2, 52.0, 21.0),
        Stored("a", NOW - 3, 52.1, 21.0),
        Stored("a", NOW - 5, 52.0, 21.0),
        Stored("a", NOW - 99, 52.0, 21.0),
    ]
    found = stored_differences(rows, acked, rejected)
    assert len(found) == 4
    assert sum("stored 2 times" in line for line in found) == 1
    assert sum("is stored at 52.1" in line and "was sent as 52.0" in line for line in found) == 1
    assert sum("though it was rejected" in line for line in found) == 1
    assert sum("was acked, but is not stored; it was sent as" in line for line in found) == 1
    assert stored_differences(rows[:2], {"a": [ping(1), ping(2)]}, rejected) == []


def test_a_vendor_is_where_its_newest_fix_is() -> None:
    """An old ping that arrives late must not move a vendor back; one that others moved on is not ours to judge."""
    acked = {"right": [ping(2, 52.0), ping(1, 52.1)], "back": [ping(2, 52.0), ping(1, 52.1)], "moved on": [ping(1)]}
    positions = {"right": (52.1, 21.0), "back": (52.0, 21.0), "moved on": (1.0, 1.0)}
    newest = {"right": NOW - 1, "back": NOW - 1, "moved on": NOW + 5}
    (line,) = position_differences(positions, newest, {**acked, "nothing": []})
    assert line.startswith("vendor back is at 52.0, 21.0")
    assert len(position_differences({"right": (None, None)}, newest, {"right": acked["right"]})) == 1


def test_counts_are_compared_with_a_fresh_snapshot() -> None:
    """A group that is missing counts as zero, on both sides."""
    held = {"a": {"count": 2}, "b": {"count": 1}}
    assert count_differences("customer 1", held, {"a": {"count": 2}, "b": {"count": 1}}) == []
    found = count_differences("customer 1", held, {"a": {"count": 3}, "c": {"count": 1}})
    assert [line.split("group ")[1][:1] for line in found] == ["a", "b", "c"]
    assert "held as 2 vendors, expected 3" in found[0]
    assert count_differences("customer 1", None, held) == ["customer 1: no snapshot of counts came"]


def test_a_check_shows_some_and_counts_all() -> None:
    """Ten thousand lines help nobody, but their number does."""
    result = check([str(number) for number in range(100)], compared=100)
    assert (result["ok"], result["differences"], len(result["shown"])) == (False, 100, 15)
    assert check([], compared=1)["ok"]


def test_a_check_that_compared_nothing_fails() -> None:
    """An empty comparison has no differences, and proves nothing."""
    assert check([], compared=0) == {
        **{"ok": False, "differences": 1, "shown": ["nothing was compared"], "compared": 0},
    }
