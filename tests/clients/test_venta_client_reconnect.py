"""When apps come back: a thousand of them must not be what keeps a server down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from venta_client.reconnect import LONGEST_DELAY, code_of_status, delay


@pytest.mark.parametrize("code", [1009, 4400, 4403, 4404])
def test_some_never_come_back(code: int) -> None:
    """The protocol's table says no."""
    assert delay(code, 0, 100, 0.5) is None


@given(st.sampled_from([1001, 1006, 1012, 4408, 4429, 4508]), st.integers(0, 10_000), st.floats(0, 1))
def test_the_others_come_back_within_bounds(code: int, attempt: int, spread: float) -> None:
    """However long an outage is, the wait is neither nothing nor forever."""
    wait = delay(code, attempt, None, spread)
    assert wait is not None
    assert 0.1 < wait <= LONGEST_DELAY + (5 if code == 4429 else 0)


def test_the_wait_grows_and_is_spread() -> None:
    """Clients in step with each other would arrive as one wave."""
    waits = [delay(1006, attempt, None, 0.5) or 0 for attempt in range(5)]
    assert waits == sorted(set(waits))
    assert delay(1006, 3, None, 0.0) != delay(1006, 3, None, 1.0)


def test_the_servers_own_spread_is_kept() -> None:
    """`bye` gives each client its own time; half a wait of our own would undo it."""
    assert delay(1001, 0, 1234, 0.9) == 1.234


def test_statuses_mean_what_the_close_codes_mean() -> None:
    """A refused handshake and a close are the same decision, made a moment earlier."""
    assert [code_of_status(status) for status in (400, 401, 403, 404, 429, 500, 503)] == [
        4400,
        4401,
        4403,
        4404,
        4429,
        1012,
        1012,
    ]
