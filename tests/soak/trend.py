"""Whether what was sampled over time stays as it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

WARM_UP = 0.2
"""Share of the samples at the beginning that don't count: pools, caches and allocators fill up."""
MOST = 150
"""Samples that are looked at; of more, every second, third … one."""


class Bound(NamedTuple):
    """How much a value may grow over the whole run: so much, and such a share of its median."""

    by: float
    share: float


class Trend(NamedTuple):
    """A value over the run: its median, by how much it grew from one end to the other, and what it may."""

    middle: float
    growth: float
    most: float

    @property
    def flat(self) -> bool:
        """Whether it stays as it is."""
        return self.growth <= self.most


def trend(times: Sequence[float], values: Sequence[float], bound: Bound) -> Trend:
    """The growth by the median of the slopes between all pairs (Theil-Sen): a spike does not count, a leak does."""
    first = int(len(values) * WARM_UP)
    step = -(-(len(values) - first) // MOST) or 1
    points = list(zip(times, values, strict=True))[first::step]
    slopes = [(y - x) / (u - t) for (t, x), (u, y) in combinations(points, 2) if u > t]
    middle = median(value for _, value in points) if points else 0.0
    length = points[-1][0] - points[0][0] if points else 0.0
    return Trend(middle, median(slopes) * length if slopes else 0.0, bound.by + bound.share * abs(middle))


def trends(
    times: Sequence[float], samples: Sequence[Mapping[str, float]], bounds: Mapping[str, Bound]
) -> dict[str, Trend]:
    """The trend of each value that has a bound."""
    return {name: trend(times, [sample[name] for sample in samples], bound) for name, bound in bounds.items()}
