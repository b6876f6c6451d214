"""A wrong clock: a server that is ahead hides true positions on every map, one that is behind rejects true pings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from streamer.errors import Unavailable
from streamer.operations.clock_check import ClockCheck

NOW = 1_790_000_000_000


@pytest.mark.parametrize(
    ("postgresql", "redis", "cause"),
    [
        (0, 0, None),
        (4_000, -4_000, None),
        (3_600_000, 0, None),
        (3_600_000, 3_600_000, "3600 s behind that of postgresql"),
        (-3_600_000, -3_600_000, "3600 s ahead of that of postgresql"),
        (None, -9_000, "9 s ahead of that of redis"),
        (None, None, None),
    ],
)
async def test_the_cause(postgresql: int | None, redis: int | None, cause: str | None) -> None:
    """A clock is wrong if no other agrees with it; one wrong reference must not stop every server."""

    def of(offset: int | None) -> Callable[[], Awaitable[int]]:
        async def now() -> int:
            if offset is None:
                raise Unavailable("away")
            return NOW + offset

        return now

    check = ClockCheck({"postgresql": of(postgresql), "redis": of(redis)}, lambda: NOW)
    await check.measure()
    found = check.cause
    assert (found is None) == (cause is None)
    assert cause is None or cause in str(found)
