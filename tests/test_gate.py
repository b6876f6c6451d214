"""How fast clients come in and go. What breaks if these fail: a restart whose clients fall upon the others at once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streamer.gate import SOONEST_MS, farewells


@given(st.integers(0, 3000), st.floats(1, 5000), st.floats(0, 30))
def test_clients_that_are_sent_away_arrive_evenly(count: int, rate: float, within: float) -> None:
    """However little time there is to leave in, no more than the rate come back in any second."""
    leaves = list(farewells(count, rate, within))
    assert len(leaves) == count
    arrivals = [leave.after + leave.back_ms / 1000 for leave in leaves]
    assert all(0 <= leave.after <= within and leave.back_ms >= SOONEST_MS for leave in leaves)
    assert all(abs(later - earlier - 1 / rate) <= 0.0011 for earlier, later in pairwise(arrivals))


def test_each_is_served_to_its_turn() -> None:
    """With time enough a client is away for the shortest time only, not until all the others were told."""
    assert [leave.back_ms for leave in farewells(600, 300, 5)] == [SOONEST_MS] * 600
    assert list(farewells(3, 1, 1)) == [(0, 100), (1, 100), (1, 1100)]
