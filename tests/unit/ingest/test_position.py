"""Which position of a vendor counts: `vendors.lat` and `long` must end where customers see the vendor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamer.clocks import CLOCK_TOLERANCE
from streamer.ingest.position import Position, arrived
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors
from streamer.live.vendor import Card

NOW = 1_790_000_000_000

ahead = st.one_of(
    st.integers(-3_000, 3_000),
    st.integers(CLOCK_TOLERANCE - 1_500, CLOCK_TOLERANCE + 1_500),
    st.integers(50_000, 60_000),
)


@given(st.lists(st.tuples(st.integers(1, 3_000), ahead), min_size=1, max_size=12))
def test_the_table_follows_the_map(pings: list[tuple[int, int]]) -> None:
    """A phone with any clock, its pings in any order: the table and the map would name two places for one vendor."""
    index = LiveIndex("me")
    vendors = LocalVendors(index, lambda vendor_id, parts: None, lambda: None)
    vendors.connect("v", Card(NOW, "name", True, None), NOW)
    now, held = NOW, None
    for number, (wait, ahead) in enumerate(pings):
        now += wait
        vendors.fix("v", Fix(now + ahead, float(number), 0.0), now)
        position = arrived(now + ahead, float(number), 0.0, now)
        held = position if held is None else position.after(held) or held
        fix = index.vendors["v"].fix
        assert (fix.timestamp, fix.lat, fix.version) == (held.timestamp, held.lat, held.version)


def test_of_one_timestamp_the_first_counts() -> None:
    """It is the one that is stored."""
    held = Position(NOW, 1.0, 1.0)
    assert Position(NOW, 2.0, 2.0).after(held) is None
