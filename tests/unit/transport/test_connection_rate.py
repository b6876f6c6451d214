"""Admission and drain rates: without them a restart becomes a reconnect storm on the other processes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.transport.connection_rate import BURST, MAX_RETRY, MIN_RECONNECT_MS, ConnectionRate, departures


@given(st.integers(0, 3000), st.floats(1, 5000), st.floats(0, 30))
def test_clients_that_are_sent_away_arrive_evenly(count: int, rate: float, within: float) -> None:
    """However little time there is to leave in, no more than the rate come back in any second."""
    leaves = list(departures(count, rate, within))
    assert len(leaves) == count
    arrivals = [leave.after + leave.reconnect_ms / 1000 for leave in leaves]
    assert all(0 <= leave.after <= within and leave.reconnect_ms >= MIN_RECONNECT_MS for leave in leaves)
    assert all(abs(later - earlier - 1 / rate) <= 0.0011 for earlier, later in pairwise(arrivals))


def test_each_is_served_to_its_turn() -> None:
    """With time enough a client is away for the shortest time only, not until all the others have left."""
    assert [leave.reconnect_ms for leave in departures(600, 300, 5)] == [MIN_RECONNECT_MS] * 600
    assert list(departures(3, 1, 1)) == [(0, 100), (1, 100), (1, 1100)]


@given(st.floats(1, 2000), st.floats(0, 10), st.lists(st.floats(0, 0.5), max_size=300))
def test_no_more_than_the_rate_get_in(rate: float, most_wait: float, gaps: list[float]) -> None:
    """Whatever the arrivals, in any stretch of time the rate and one burst get in, in order, none waiting too long."""
    admission, now, entered = ConnectionRate(rate, most_wait), 0.0, list[float]()
    for gap in gaps:
        now += gap
        wait = admission.wait(now)
        if wait is not None:
            assert 0 <= wait <= most_wait
            entered.append(now + wait)
    assert len(entered) + admission.refused == len(gaps)
    assert entered == sorted(entered)
    most = max(1.0, rate * BURST) + 1
    for first in range(0, len(entered), 7):
        for last in range(first, len(entered), 11):
            assert last - first + 1 <= most + rate * (entered[last] - entered[first]) + 1e-6 * (last - first + 1)


def test_a_small_crowd_does_not_wait() -> None:
    """One that comes alone goes in at once, and so does a small crowd."""
    admission = ConnectionRate(300, 5)
    assert [admission.wait(100.0 + second) for second in range(5)] == [0.0] * 5
    assert [admission.wait(200.0) for _ in range(50)] == [0.0] * 50


def test_admission_slows_while_the_event_loop_is_late() -> None:
    """A process that is late already lets fewer in, but always some."""
    for late, rate in ((0.0, 100.0), (0.05, 100.0), (0.1, 50.0), (0.25, 20.0), (5.0, 10.0)):
        admission = ConnectionRate(100, 60)
        waits = [admission.wait(0.0, late) or 0.0 for _ in range(101)]
        assert (waits[-1] - waits[-51]) * rate == pytest.approx(50)


def test_a_reconnect_storm_is_spread() -> None:
    """5,000 at once: those who would wait too long get times of their own, so they do not come back all at once."""
    admission = ConnectionRate(300, 5)
    waits = [admission.wait(0.0) for _ in range(5000)]
    inside = [wait for wait in waits if wait is not None]
    assert 1500 <= len(inside) <= 1600
    back = [admission.retry_after(0.0) for _ in range(5000 - len(inside))]
    assert all(round(later - earlier, 6) == round(1 / 300, 6) for earlier, later in pairwise(back))
    assert 5 < back[0] < 6
    assert 15 < back[-1] < 18
    assert max(admission.retry_after(0.0) for _ in range(50_000)) == MAX_RETRY
