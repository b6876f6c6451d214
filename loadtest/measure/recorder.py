"""What one worker counts, second by second, cheap enough for every ping and every frame. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

STEPS_PER_S = 10_000
"""Delays are counted in steps of 0.1 ms: incrementing a dictionary costs a tenth of what an HDR histogram does."""


class Recorder:
    """Counters by name, and delays by name as {step: count}; `take` returns both and starts over."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._delays: dict[str, Counter[int]] = {}

    def delay(self, name: str, seconds: float) -> None:
        """Counts one delay; a negative one, which only a skewed clock can make, counts as zero and as `skewed`."""
        step = int(seconds * STEPS_PER_S)
        if step < 0:
            step = 0
            self.counts["skewed"] += 1
        steps = self._delays.get(name)
        if steps is None:
            steps = self._delays[name] = Counter()
        steps[step] = steps.get(step, 0) + 1

    def delays(self, name: str, steps: list[int]) -> None:
        """Counts many delays at once, in steps of 0.1 ms: a fifth of the cost of one by one."""
        if not steps:
            return
        if min(steps) < 0:
            self.counts["skewed"] += sum(step < 0 for step in steps)
            steps = [max(step, 0) for step in steps]
        self._delays.setdefault(name, Counter()).update(steps)

    def stall(self, name: str, seconds: float, every: float) -> None:
        """Counts a stall weighted by its length: as what events every `every` s within it had to wait for its end."""
        left = seconds
        while left > 0:
            self.delay(name, left)
            left -= every

    def take(self) -> dict[str, Any]:
        """Returns what was counted since the last call, as JSON can hold it."""
        taken = {
            "counts": dict(self.counts),
            "delays": {name: [list(steps), list(steps.values())] for name, steps in self._delays.items()},
        }
        self.counts = Counter()
        self._delays = {}
        return taken


def time_of_day(milliseconds: float) -> str:
    """Returns an epoch ms as the time of day in UTC."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(milliseconds / 1000))}.{int(milliseconds) % 1000:03d}"


def percentile(steps: Mapping[int, int], percent: float) -> int | None:
    """Returns the step of a percentile in {step: count}; None of none."""
    total = sum(steps.values())
    at = 0
    for step in sorted(steps):
        at += steps[step]
        if at >= total * percent / 100:
            return step
    return None
