"""The cadence: errors here make an idle server slow, or let one kind of work starve the others on a busy one."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.cadence import COMMITS, PUBLISHES, TICKS, Cadence, Pace, Utilisation, interval

costs = st.floats(0, 10)
utilisations = st.floats(0, 1)
paces = st.builds(Pace, share=st.floats(0.01, 1), floor=st.floats(0, 0.1), ceiling=st.floats(0.1, 1))


@given(costs, utilisations, paces)
def test_an_interval_is_within_its_bounds(cost: float, utilisation: float, pace: Pace) -> None:
    """Without bounds a customer could wait without end, or the event loop never rest."""
    assert pace.floor <= interval(cost, utilisation, pace) <= pace.ceiling


@given(costs, costs, utilisations, utilisations, paces)
def test_dearer_rounds_and_a_busier_process_never_make_it_shorter(
    cost: float, other_cost: float, utilisation: float, other: float, pace: Pace
) -> None:
    """A server that did more the less time it has would collapse under load."""
    cheap, dear = sorted((cost, other_cost))
    idle, busy = sorted((utilisation, other))
    assert interval(cheap, idle, pace) <= interval(dear, idle, pace) * (1 + 1e-9)
    assert interval(dear, idle, pace) <= interval(dear, busy, pace) * (1 + 1e-9)


@given(st.floats(0.0001, 0.1), st.floats(0, 0.5))
def test_with_headroom_rounds_use_their_share(cost: float, utilisation: float) -> None:
    """Rounds that wait for longer than their cost asks for make customers wait for nothing."""
    pace = Pace(share=0.5, floor=0.0, ceiling=0.2)
    found = interval(cost, utilisation, pace)
    assert cost / found == pytest.approx(pace.share * found / pace.ceiling)


@dataclass
class Machine:
    """One thread and its work, simulated: what it does takes CPU time, and its clock goes on while it waits."""

    cpu: float = 1.0
    """What it gets of a CPU; others have the rest."""
    now: float = 0.0
    used: float = 0.0
    busy: float = 0.0
    timeline: list[tuple[float, str]] = field(default_factory=list)

    def work(self, seconds: float) -> None:
        self.now += seconds / self.cpu
        self.used += seconds
        self.busy += seconds / self.cpu

    def utilisation(self) -> Utilisation:
        return Utilisation(lambda: self.now, lambda: self.used, lambda: self.busy)

    def run(self, kinds: dict[str, Work], pings: float, ping_cost: float, until: float) -> None:
        """Takes pings in, and starts each kind of round as soon as its cadence allows and something waits for it."""
        utilisation = self.utilisation()
        cadences = {name: Cadence(kind.pace, utilisation) for name, kind in kinds.items()}
        taken = 0
        done = dict.fromkeys(kinds, 0)
        while self.now < until:
            due = int(self.now * pings)
            if taken < due:
                # As the event loop does: a turn takes in what has come, up to a bound, and then others have theirs.
                some = min(due - taken, 50)
                taken += some
                self.work(some * ping_cost)
            worked = False
            for name, cadence in cadences.items():
                if done[name] < taken and cadence.wait() == 0:
                    cadence.begin()
                    self.timeline.append((self.now, name))
                    self.work(kinds[name].cost(taken - done[name]))
                    done[name] = taken
                    cadence.end()
                    worked = True
            if not worked and taken >= int(self.now * pings):
                self.now += 0.0005

    def intervals(self, name: str, since: float) -> list[float]:
        at = [when for when, what in self.timeline if what == name and when >= since]
        return [after - before for before, after in pairwise(at)]


@dataclass(frozen=True)
class Work:
    """One kind of round: CPU seconds of each, and of each ping in it."""

    pace: Pace
    fixed: float
    each: float

    def cost(self, pings: int) -> float:
        return self.fixed + self.each * pings


@settings(max_examples=15)
@given(
    pings=st.floats(50, 20_000),
    ping_cost=st.floats(5e-6, 4e-5),
    frames=st.floats(0, 0.03),
    fan_out=st.floats(1e-6, 1e-4),
)
def test_no_oscillation_and_no_starvation(pings: float, ping_cost: float, frames: float, fan_out: float) -> None:
    """Ticks, commits and publishes share one thread with the pings, on an idle server and far over its capacity."""
    machine = Machine()
    kinds = {
        "tick": Work(TICKS, frames, fan_out),
        "commit": Work(COMMITS, 0.0003, 5e-6),
        "publish": Work(PUBLISHES, 0.0005, 1e-5),
    }
    machine.run(kinds, pings, ping_cost, until=15.0)
    # Beyond its capacity rounds grow, as each finds what came in during the ones before, and work piles up.
    load = pings * (ping_cost + sum(kind.each for kind in kinds.values()))
    load += sum(kind.fixed / kind.pace.ceiling for kind in kinds.values())
    overload = max(1.0, load)
    backlog = 15.0 * (overload - 1.0)
    ceilings = {name: kind.pace.ceiling for name, kind in kinds.items()}
    for name in kinds:
        found = machine.intervals(name, since=9.0)
        assert found, f"no {name} for six seconds"
        # One turn of the others, and its own duration, may come on top of the interval.
        turn = sum(kind.cost(int(pings * 2 * ceilings[other])) for other, kind in kinds.items()) + 50 * ping_cost
        assert max(found) <= 2 * (ceilings[name] + 1 / pings) + 3 * turn * overload + backlog, f"{name} starved"
        # Work that can be done finds a steady interval, near saturation after seconds: its halves are alike.
        half = len(found) // 2
        if half > 5 and load < 0.75:
            assert mean(found[:half]) == pytest.approx(mean(found[half:]), rel=0.35, abs=0.005), f"{name} oscillates"


def test_an_idle_server_is_quick_and_a_crowd_takes_its_share() -> None:
    """Ten vendors and ten customers get everything at once; five hundred customers cost no more than the share."""
    quick = Machine()
    quick.run({"tick": Work(TICKS, 0.0001, 1e-6)}, pings=10, ping_cost=3e-5, until=5.0)
    assert max(quick.intervals("tick", since=1.0)) < 0.11, "a ping each tenth of a second, each at once"
    crowd = Machine()
    crowd.run({"tick": Work(TICKS, 0.005, 1e-5)}, pings=1000, ping_cost=3e-5, until=10.0)
    found = crowd.intervals("tick", since=2.0)
    cost = 0.005 + 1e-5 * 1000 * mean(found)
    assert cost / mean(found) == pytest.approx(TICKS.share * mean(found) / TICKS.ceiling, rel=0.1)


def test_a_busy_process_merges() -> None:
    """Commits that stay as frequent while pings take nearly all of the time leave nothing to take pings in with."""
    commits = {"commit": Work(COMMITS, 0.0003, 5e-6)}
    found = []
    for ping_cost in (1e-5, 8e-5):
        machine = Machine()
        machine.run(commits, pings=10_000, ping_cost=ping_cost, until=8.0)
        found.append(mean(machine.intervals("commit", since=3.0)))
    assert found[0] < 0.03
    assert found[1] > 2 * found[0]


def test_a_process_with_a_part_of_a_cpu_merges_too() -> None:
    """A container with a third of a CPU would else look idle at its limit, and write to watchers instead of reading."""
    found = []
    for cpu in (1.0, 0.3):
        machine = Machine(cpu)
        machine.run({"tick": Work(TICKS, 0.005, 1e-5)}, pings=3000, ping_cost=8e-5, until=8.0)
        found.append(mean(machine.intervals("tick", since=3.0)))
    assert found[0] < 0.05
    assert found[1] > 2 * found[0]


def test_utilisation_follows_within_seconds() -> None:
    """A process that was busy a minute ago must not hold back what comes now, nor one that was idle miss its rush."""
    machine = Machine()
    utilisation = machine.utilisation()
    for _ in range(100):
        machine.work(0.03)
        machine.now += 0.01
        utilisation.value()
    assert utilisation.value() == pytest.approx(0.75, abs=0.05)
    machine.now += 60.0
    assert utilisation.value() < 0.05


def test_a_long_round_leaves_time_for_others() -> None:
    """A tick that takes longer than the ceiling would otherwise be followed by another at once, forever."""
    machine = Machine()
    cadence = Cadence(TICKS, machine.utilisation())
    cadence.begin()
    machine.work(5 * TICKS.ceiling)
    cadence.end()
    assert cadence.wait() == pytest.approx(TICKS.ceiling)
