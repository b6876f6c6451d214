"""A short soak test, and a proof that it finds a leak. `make soak` takes an hour."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.soak.__main__ import SLACK
from tests.soak.course import BOUNDS, Course, Soak
from tests.soak.trend import Bound, trend, trends

HOUR = [float(at) for at in range(0, 3600, 15)]


def noisy(slope: float, level: float, noise: float, seed: int) -> list[float]:
    """Returns samples of a value that grows by `slope` per hour."""
    random = Random(seed)
    return [level + slope * at / 3600 + random.gauss(0, noise) for at in HOUR]


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found_and_noise_is_none(seed: int) -> None:
    """A leak of 20 MB per hour in noise is found; noise, a warm-up and a spike are not reported as a leak."""
    bound = Bound(6.0, 0.01)
    assert not trend(HOUR, noisy(20.0, 130.0, 4.0, seed), bound).flat
    assert trend(HOUR, noisy(0.0, 130.0, 4.0, seed), bound).flat
    warming = noisy(0.0, 130.0, 1.0, seed)
    for at in range(40):
        warming[at] -= 60 - at
    for at in range(100, 110):
        warming[at] += 500
    assert trend(HOUR, warming, bound).flat


def test_a_step_that_stays_is_found() -> None:
    """A resource that is never released is found, however rarely it is acquired."""
    assert not trend(HOUR, [100.0 + at // 600 * 3 for at in HOUR], Bound(4.0, 0.02)).flat


async def test_a_short_course(tmp_path: Path) -> None:
    """Clients connect and disconnect under load, all values are sampled, and no resources remain at the end."""
    soak = Soak(Course(seconds=3.0, share=0.2, vendors=10, watchers=10, every=0.5, calibration=1.0), tmp_path)
    async with soak.prepared():
        run = await soak.run()
    assert run.violations == []
    assert run.rate > 1
    assert set(BOUNDS) <= set(run.samples[-1])
    found = trends(run.times, run.samples, BOUNDS)
    assert found["tasks"].middle > 20
    assert found["partitions"].growth == 0
    for before, after in run.left.values():
        assert after <= before + SLACK
