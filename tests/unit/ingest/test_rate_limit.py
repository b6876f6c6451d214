"""How much a vendor may send: too little and a backlog never ends, too much and one vendor is everybody's outage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import CloseCode, Disconnect
from streamer.ingest.rate_limit import (
    AHEAD,
    CHANGES_AHEAD,
    FORGET,
    MOST_WARNINGS,
    PAUSE,
    Allowance,
    Allowances,
    Limit,
    Meter,
    Rates,
)

steps = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 500)), max_size=60)


@given(st.floats(1, 1e4), steps)
def test_a_meter_lets_its_rate_go(rate: float, sent: list[tuple[float, int]]) -> None:
    """The level is never below zero and never more than what came less what the rate took since the first."""
    meter, now, total = Meter(rate, 0.0), 0.0, 0
    for pause, count in sent:
        now += pause
        total += count
        level = meter.add(count, now)
        assert count <= level + 1e-6
        assert level <= total + 1e-6
    assert meter.level(now + total / rate + 1) == 0.0


def test_prompt_within_the_rate() -> None:
    """A vendor that reports as phones do is always ahead of those who upload."""
    allowance = Allowance(100.0, 20_000, 0.0)
    assert all(allowance.take(1, second / 10) for second in range(1000))


def test_a_backlog_is_not_prompt_but_is_taken() -> None:
    """Ten thousand offline pings go behind the live ones, and are read at full speed."""
    allowance = Allowance(100.0, 20_000, 0.0)
    prompt = [allowance.take(500, 0.0) for _ in range(20)]
    assert prompt == [True] * (AHEAD // 500) + [False] * (20 - AHEAD // 500)
    assert allowance.wait(0.0, contended=False) == 0.0
    assert allowance.wait(0.0, contended=True) == 0.0


def test_a_flood_waits_while_others_need_room() -> None:
    """One vendor's flood slows that vendor, and only while the buffer is fought over."""
    allowance = Allowance(100.0, 1_000, 0.0)
    allowance.take(5_000, 0.0)
    assert allowance.wait(0.0, contended=False) == 0.0
    assert allowance.wait(0.0, contended=True) == pytest.approx(40.0)
    assert allowance.wait(40.0, contended=True) == 0.0


def test_what_waits_to_be_stored_is_bounded_for_each() -> None:
    """With PostgreSQL away one vendor can't fill the buffer for all."""
    allowance = Allowance(100.0, 1_000, 0.0)
    allowance.unsettled = 1_500
    assert allowance.wait(1e9, contended=False) > 0
    allowance.unsettled = 1_000
    assert allowance.wait(1e9, contended=False) == 0.0


def test_a_reconnect_makes_no_new_allowance() -> None:
    """A flood that reconnects is still that flood; one that went quiet is forgotten."""
    allowances = Allowances(100.0, 1_000)
    first = allowances.of("v", 0.0)
    first.take(5_000, 0.0)
    assert allowances.of("v", 1.0) is first
    for number in range(5_000):
        allowances.of(f"v{number}", 1_000.0)
    assert len(allowances) <= 2_001 + 1_000


def test_a_vendor_that_opens_and_closes_without_end() -> None:
    """Each time is a write, an audit entry and news to everyone around: a few at once, then at its rate."""
    allowance = Allowances(100.0, 1_000, 0.5).of("v", 0.0)
    assert [allowance.change(0.0) for _ in range(CHANGES_AHEAD)] == [0.0] * CHANGES_AHEAD
    assert allowance.change(0.0) == pytest.approx(2.0)
    assert allowance.change(1.0) == pytest.approx(1.0), "being refused costs nothing more"
    assert allowance.change(2.0) == 0.0
    assert not allowance.idle(3.0)
    assert allowance.idle(2.0 + CHANGES_AHEAD / 0.5)


def test_too_many_messages_are_warned_then_ended() -> None:
    """A client that ignores its warnings is closed; for one that slows down they are reset."""
    limit = Limit(10.0, 0.0)
    now = 0.0
    with pytest.raises(Disconnect) as closing:  # noqa: PT012  # which of them raises is what is tested
        for _ in range(MOST_WARNINGS + 1):
            while not limit.over(now):
                pass
            now += PAUSE
    assert closing.value.close is CloseCode.TOO_MANY
    calm = Limit(10.0, 0.0)
    for round_ in range(3 * MOST_WARNINGS):
        now = round_ * (PAUSE + FORGET + 1)
        while not calm.over(now):
            pass


@given(st.floats(1, 1000))
def test_a_steady_client_is_never_warned(rate: float) -> None:
    """A client at its rate or below is not limited."""
    limit = Limit(max(rate, 2.0), 0.0)
    assert not any(limit.over(number / max(rate, 2.0)) for number in range(1, 500))


def test_each_name_has_a_rate_of_its_own() -> None:
    """One user's script must not use up the requests of another; idle names are removed."""
    rates = Rates(0.5, 3)
    assert [rates.wait("a", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]
    assert rates.wait("b", 0.0) == 0.0
    assert rates.wait("a", 1.0) == 1.0
    assert rates.wait("a", 2.0) == 0.0
    for number in range(5000):
        rates.wait(f"user {number}", 100.0 + 10 * number)
    assert len(rates) <= 1001
