"""A scenario's stages as functions of time. Pure; seconds since the start everywhere."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from loadtest.engine.scenario import Stage


class Levels(NamedTuple):
    """Multiples of a scenario's counts."""

    vendors: float
    customers: float


class Leg(NamedTuple):
    """One stage in time: levels change evenly from `first` to `last`."""

    begin: float
    stage: Stage
    first: Levels
    last: Levels


class Course:
    """The stages in time: `total` seconds, the levels at each time, and when connections are cut."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.legs: list[Leg] = []
        at, now = 0.0, Levels(0.0, 0.0)
        for number, stage in enumerate(stages):
            to = goal(stage, now if number or stage.kind == "ramp" else Levels(1.0, 1.0))
            self.legs.append(Leg(at, stage, now if stage.kind == "ramp" else to, to))
            at += stage.seconds
            now = now if stage.kind == "spike" else to
        self.total = at
        self._begins = [leg.begin for leg in self.legs]

    def leg(self, at: float) -> Leg:
        """Returns the stage at a time; the last one after the end."""
        return self.legs[max(0, bisect_right(self._begins, at) - 1)]

    def levels(self, at: float) -> Levels:
        """Returns the levels of vendors and customers at a time."""
        leg = self.leg(at)
        done = min(1.0, max(0.0, (at - leg.begin) / leg.stage.seconds))
        return Levels(*(first + (last - first) * done for first, last in zip(leg.first, leg.last, strict=True)))

    def peak(self) -> Levels:
        """Returns the highest levels."""
        ends = [levels for leg in self.legs for levels in (leg.first, leg.last)]
        return Levels(max(levels.vendors for levels in ends), max(levels.customers for levels in ends))

    def storms(self) -> list[tuple[float, Stage]]:
        """Returns when connections are cut, in order."""
        return [(leg.begin, leg.stage) for leg in self.legs if leg.stage.kind == "storm"]


def goal(stage: Stage, now: Levels) -> Levels:
    """Returns the levels at the end of a stage that begins at `now`."""
    both = stage.to
    vendors = stage.vendors if stage.vendors is not None else both
    customers = stage.customers if stage.customers is not None else both
    return Levels(now.vendors if vendors is None else vendors, now.customers if customers is None else customers)
