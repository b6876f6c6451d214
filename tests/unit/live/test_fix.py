"""The order of fixes: if processes did not agree on it, a vendor would be at two places for two customers."""

from __future__ import annotations

from itertools import permutations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from streamer.clocks import CLOCK_TOLERANCE
from streamer.live.fix import Fix, fix_of_register
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Presence

NOW = 1_790_000_000_000

degrees = st.sampled_from([-9.5, 2.0, 10.25, 10.5])
fixes = st.builds(
    Fix,
    st.sampled_from([NOW - 1, NOW, NOW + 1, NOW + 2_000, NOW + CLOCK_TOLERANCE + 1, NOW + 3_600_000]),
    degrees,
    degrees,
    st.sampled_from([None, 90.0, 91.0]),
    st.none(),
    st.sampled_from([0, 0, 1, 2_000]),
    st.booleans(),
)


def winner(order: tuple[Fix, ...]) -> Fix:
    """What a process holds that heard of these in this order."""
    index = LiveIndex("me")
    for fix in order:
        index.put_fix("v", fix, NOW)
    return index.vendors["v"].fix


@given(st.lists(fixes, min_size=1, max_size=4))
def test_every_order_ends_with_the_same_fix(found: list[Fix]) -> None:
    """Processes hear of fixes in different orders, some twice, and must end with the same one."""
    first = winner(tuple(found))
    for order in permutations(found):
        assert winner(order) == first
        assert winner((*order, *order)) == first


@given(fixes, fixes)
def test_of_two_fixes_exactly_one_replaces_the_other(one: Fix, other: Fix) -> None:
    """Two fixes that replaced each other would be published back and forth forever."""
    if one == other:
        assert not one.replaces(other, NOW)
    else:
        assert one.replaces(other, NOW) != other.replaces(one, NOW)


@given(fixes)
def test_a_register_is_read_as_it_was_written(fix: Fix) -> None:
    """What one process writes another one must show."""
    assert fix_of_register(orjson.loads(fix.register("v"))) == ("v", fix)


def test_the_stored_one_of_a_timestamp_wins() -> None:
    """Two phones of one vendor: the map must show the position that the history has."""
    shown, stored = Fix(NOW, 20.0, 1.0), Fix(NOW, 10.0, 1.0, stored=True)
    assert stored.replaces(shown, NOW)
    assert not shown.replaces(stored, NOW)


def test_a_fix_ahead_of_its_time_yields_to_the_next() -> None:
    """A phone's wrong clock must not hide its true positions until that time has come."""
    ahead = Fix(NOW + 59_000, 1.0, 1.0, ahead=59_000)
    assert Fix(NOW + 1_000, 2.0, 2.0).replaces(ahead, NOW + 1_000)
    assert not Fix(NOW - 1, 2.0, 2.0).replaces(ahead, NOW)


def test_a_fix_of_a_process_whose_clock_is_wrong_yields() -> None:
    """A server an hour ahead would hide all that its vendors report for an hour, on every server."""
    wrong, true = Fix(NOW + 3_600_000, 1.0, 1.0), Fix(NOW, 2.0, 2.0)
    assert true.replaces(wrong, NOW)
    assert not wrong.replaces(true, NOW)


versions = st.sampled_from([NOW - 1, NOW, NOW + 1, NOW + CLOCK_TOLERANCE + 1, NOW + 3_600_000])
cards = st.builds(Card, versions, st.sampled_from(["a", "b"]), st.booleans(), st.none(), st.booleans())
presences = st.builds(Presence, versions, st.sampled_from(["one", "two"]), st.sampled_from([0, NOW]))
states = st.tuples(cards, presences, versions)


def merged(order: tuple[tuple[Card, Presence, int], ...]) -> tuple[Card, Presence, int]:
    """What a process holds that heard of these in this order."""
    index = LiveIndex("me")
    for card, presence, http in order:
        index.put_card("v", card, NOW)
        index.put_presence("v", presence, NOW)
        index.put_http("v", http, NOW)
    vendor = index.vendors["v"]
    return vendor.card, vendor.presence, vendor.http


@given(st.lists(states, min_size=1, max_size=3))
def test_every_order_ends_with_the_same_state(found: list[tuple[Card, Presence, int]]) -> None:
    """Two processes that read a card in the same millisecond, before and after a change, would differ forever."""
    first = merged(tuple(found))
    for order in permutations(found):
        assert merged(order) == first
        assert merged((*order, *order)) == first
