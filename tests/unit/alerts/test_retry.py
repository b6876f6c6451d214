"""When a webhook that failed is sent again."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.alerts.retry import GIVE_UP_AFTER, next_attempt, wait_of

NOW = 1_800_000_000_000


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 50))
def test_attempts_end_after_a_day_and_never_stop_before(chance: float, seconds: int) -> None:
    """A receiver that is down over night gets what it missed; one that is gone is not tried forever."""
    at, attempts, pauses = NOW, 0, []
    while True:
        attempts += 1
        answered = at + seconds * 1000
        following = next_attempt(NOW, attempts, answered, chance)
        if following is None:
            break
        assert following >= at
        pauses.append(following - answered)
        at = following
    assert GIVE_UP_AFTER - seconds * 1000 <= at - NOW <= GIVE_UP_AFTER
    assert 10 <= attempts <= 25
    assert pauses[0] < 10_000
    assert pauses[4] > 100_000


def test_outages_do_not_end_in_a_burst() -> None:
    """Otherwise all webhooks that failed at one moment would be sent again at one moment, and fail again."""
    times = {next_attempt(NOW, 5, NOW, chance / 10) for chance in range(10)}
    assert len(times) == 10


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("120", 120_000),
        (formatdate(NOW / 1000 + 60, usegmt=True), 60_000),
        (formatdate(NOW / 1000 - 60, usegmt=True), 0),
        ("99999999999", GIVE_UP_AFTER),
        ("soon", None),
        ("-1", None),
        ("", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2029 00:00:00 +99999999999999999999", None),
    ],
)
def test_retry_after_is_read_in_both_forms(header: str, wait: int | None) -> None:
    """A receiver that asks for a pause and does not get one is overloaded further."""
    assert wait_of(header, NOW) == wait


def test_a_receiver_can_lengthen_a_pause_but_not_shorten_it() -> None:
    """A receiver that answers `Retry-After: 0` would be asked in a loop."""
    usual = next_attempt(NOW, 1, NOW, 0.5)
    assert next_attempt(NOW, 1, NOW, 0.5, "0") == usual
    assert next_attempt(NOW, 1, NOW, 0.5, "600") == NOW + 600_000
    assert next_attempt(NOW, 1, NOW, 0.5, "9999999") == NOW + GIVE_UP_AFTER
