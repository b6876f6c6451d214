"""Decides how often repeated work may run: live ticks, commits and publishes. Pure.

While a process has headroom, everything is sent as soon as possible. When it is busy, rounds are merged: each kind of
round may use a share of the thread's CPU time, measured over the previous rounds, so its interval grows with its cost.
The share is small while intervals are short, as such a delay goes unnoticed, and grows with them. When the event loop
is busy for more than half of the time, for any reason, all intervals are stretched too. Time for which its thread waits
for a CPU counts as busy: a process beside others, or with a CPU limit, has less headroom than its own CPU time shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from math import exp, inf, sqrt
from typing import Any, TypeVar

from streamer.cpu_time import busy_time, measured

MEMORY = 1.0
"""Seconds over which utilisation is averaged."""
SAMPLE = 0.2
"""Seconds between two samples of the utilisation; CPU clocks are too coarse for much less."""
WEIGHT = 0.25
"""Weight of the newest round in the average cost."""
BUSY = 0.5
"""Utilisation up to which the process has headroom, and intervals are not stretched."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Pace:
    """Bounds of one kind of round.

    Args:
        share: The share of the thread's CPU time that rounds may use when they are `ceiling` apart; proportionally less
            when they are closer.
        floor: Minimum seconds from the start of one round to the next.
        ceiling: Maximum seconds between them, whatever the rounds cost.
    """

    share: float
    floor: float
    ceiling: float


TICKS = Pace(share=1.0, floor=0.002, ceiling=0.18)
"""Writing updates to watchers. The setting `frame_interval` replaces the ceiling."""
COMMITS = Pace(share=0.6, floor=0.015, ceiling=0.25)
"""Storing pings. The floor bounds what PostgreSQL spends on commits, which this process can't measure."""
PUBLISHES = Pace(share=0.3, floor=0.03, ceiling=0.25)
"""Publishing to other processes. The floor bounds what Redis and the other processes spend on messages."""


def interval(cost: float, utilisation: float, pace: Pace) -> float:
    """Returns the seconds from the start of a round to the next, for rounds that cost so many seconds of CPU time."""
    headroom = min(1.0, (1.0 - utilisation) / (1.0 - BUSY))
    # At this interval rounds use `share * interval / ceiling` of the CPU time, which minimises CPU time plus delay.
    wanted = max(pace.floor, sqrt(cost * pace.ceiling / pace.share))
    return pace.ceiling if wanted >= pace.ceiling * headroom else wanted / headroom


class Utilisation:
    """The share of time for which the event loop's thread was busy, averaged over about a second."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        busy_clock: Callable[[], float] = busy_time,
    ) -> None:
        self.clock = clock
        self.cpu_clock = cpu_clock
        self._value = 0.0
        self._sampled_at = clock()
        self._busy_clock = busy_clock
        self._busy_at = busy_clock()

    def value(self) -> float:
        """Returns the utilisation, 0 to 1; to be called in the event loop's thread."""
        elapsed = self.clock() - self._sampled_at
        if elapsed >= SAMPLE:
            busy = self._busy_clock()
            newest = min(1.0, (busy - self._busy_at) / elapsed)
            self._value += (1.0 - exp(-elapsed / MEMORY)) * (newest - self._value)
            self._sampled_at += elapsed
            self._busy_at = busy
        return self._value


class Cadence:
    """When the next round of one kind may start."""

    def __init__(self, pace: Pace, utilisation: Utilisation | None = None) -> None:
        self.pace = pace
        self.cost = 0.0
        """Average CPU seconds of a round."""
        self.next = -inf
        """The earliest start of the next round, by the monotonic clock."""
        self._utilisation = utilisation or Utilisation()
        self._started = -inf
        self._cpu_at = 0.0

    def wait(self) -> float:
        """Returns the seconds until the next round may start."""
        return max(0.0, self.next - self._utilisation.clock())

    async def round(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs one round, and counts the CPU time of its own steps only."""
        cost = 0.0

        def add(seconds: float) -> None:
            nonlocal cost
            cost += seconds

        self.begin()
        result = await measured(work, add, self._utilisation.cpu_clock)
        self.end(cost)
        return result

    def begin(self) -> None:
        """Starts a round."""
        self._started = self._utilisation.clock()
        self._cpu_at = self._utilisation.cpu_clock()

    def end(self, cost: float | None = None, aside: float = 0.0) -> None:
        """Ends a round.

        Args:
            cost: Its CPU seconds; by default all that the thread used since `begin`.
            aside: The part of the cost that fewer rounds would not save. It does not make rounds less frequent.
        """
        if cost is None:
            cost = self._utilisation.cpu_clock() - self._cpu_at
        self.cost += WEIGHT * (max(0.0, cost - aside) - self.cost)
        after = self._started + interval(self.cost, self._utilisation.value(), self.pace)
        # Even a round that takes longer than its interval must leave time for other work.
        self.next = max(after, self._utilisation.clock() + min(cost / 2, self.pace.ceiling))
