"""Trends of sampled values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

WARM_UP = 0.2
"""The share of initial samples to ignore, while pools, caches and allocators fill up."""
MOST = 150
"""Maximum number of samples used; of more, only every second, third and so on."""


class Bound(NamedTuple):
    """Maximum growth of a value over the whole run: absolute, or as a share of its median."""

    by: float
    share: float


class Trend(NamedTuple):
    """A value over the run: its median, its growth from beginning to end, and the growth allowed."""

    middle: float
    growth: float
    most: float

    @property
    def flat(self) -> bool:
        """Whether the growth is allowed."""
        return self.growth <= self.most


def trend(times: Sequence[float], values: Sequence[float], bound: Bound) -> Trend:
    """Returns the growth by the median slope between all pairs (Theil-Sen), which ignores spikes but shows leaks."""
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
    """Returns the trend of each value with a limit."""
    return {name: trend(times, [sample[name] for sample in samples], bound) for name, bound in bounds.items()}
