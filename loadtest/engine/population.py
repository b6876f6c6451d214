"""A worker's share of a run, and how its vendors or customers connect and disconnect."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter

from loadtest.clients.app import App, stop
from loadtest.clients.target import Identity, Target, minting
from loadtest.engine.scenario import Course, Phones, Scenario, Stage
from loadtest.measure.recording import Recorder

GOLDEN = (math.sqrt(5) - 1) / 2
SILVER = math.sqrt(2) - 1
ADJUST_EVERY = 100.0
CONNECTED_AT_ONCE = 25
"""Maximum connections opened in 100 ms: under the server's admission limit, so that a ramp is no reconnect storm."""
AppT = TypeVar("AppT", bound=App)
Kind = Literal["vendors", "customers"]


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that drives vendors: `zero` (epoch ms in it) is the start of the run, gaps are divided by `speedup`."""

    path: str
    zero: int
    speedup: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: part `part` of `parts` machines; `workers` processes for vendors and as many for customers.

    About `sampled` customers hold full views. `verify` compares these with what was acked while the run goes on, and
    all that is stored at the end. With a coordinator, `remote` of the workers are on other machines.
    """

    target: Target
    secret: str
    scenario: Scenario
    name: str
    identities: Sequence[Identity]
    database: str | None = None
    own: str | None = None
    verify: bool = False
    trace: Trace | None = None
    workers: int = 1
    remote: int = 0
    sampled: int = 20
    seed: int = 0
    part: int = 1
    parts: int = 1
    start_at: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def customers(self) -> float:
        """The number of customers at the highest level, on all machines."""
        return self.scenario.customers.count * Course(self.scenario.stages).peak().customers

    def shares(self) -> list[Share]:
        """Returns the share of each worker of this machine."""
        kinds: list[Kind] = ["vendors", "customers"] if self.customers else ["vendors"]
        first = (self.part - 1) * self.workers
        return [Share(kind, number, self) for number in range(first, first + self.workers) for kind in kinds]


@dataclass(frozen=True, slots=True)
class Share:
    """What worker `number` of a kind, counted over all machines, carries out of a plan.

    `offset` is the server's clock less this machine's, in ms.
    """

    kind: Kind
    number: int
    plan: Plan
    offset: float = 0.0

    @property
    def audited(self) -> bool:
        """Whether vendors' workers report acked pings while the run goes on, and customers' compare them with views."""
        plan = self.plan
        views = plan.verify and plan.sampled > 0 and bool(plan.customers) and plan.scenario.vendors.bulk is None
        return views or (self.kind == "vendors" and plan.scenario.alerts.count > 0)

    def token(self, index: int) -> Callable[[], str]:
        """Returns what gives the app with this index its tokens: they outlive the run, so none ends a connection."""
        identity = self.plan.identities[index % len(self.plan.identities)]
        return minting(identity, self.plan.secret, self.plan.scenario.token_lifetime)

    def indices(self, count: int) -> range:
        """Returns which of `count` vendors or customers this worker has."""
        return range(self.number, count, self.plan.workers * self.plan.parts)


SHARE = TypeAdapter(Share)
"""A share as JSON holds it, and back."""


def spread(index: int, step: float = GOLDEN) -> float:
    """Returns a number from 0 to 1 for each index, so even that any range of indices has about the proportions."""
    return (index * step + step / 2) % 1.0


def pick(index: int, shares: Sequence[float]) -> int:
    """Returns which of several things, in these proportions, the one with this index is."""
    at, place = spread(index) * sum(shares), 0.0
    for which, share in enumerate(shares):
        place += share
        if at < place:
            return which
    return len(shares) - 1


class Population(Generic[AppT]):
    """The apps of one worker, as tasks of `group`; `clock` is the server's time in epoch ms.

    `active` is how many of them take part, those asleep or without a network too. `turns` grows for an app when it
    comes or goes, so that what was planned for it before is void.
    """

    kind: str
    apps: list[AppT]
    counted: Sequence[str] = ("faults", "refused")
    """What its apps count themselves."""

    def __init__(self, share: Share, recorder: Recorder, clock: Callable[[], float], group: asyncio.TaskGroup) -> None:
        self.active = self._target = 0
        self._share, self._plan, self._scenario = share, share.plan, share.plan.scenario
        self._city = self._scenario.disc
        self._course = Course(self._scenario.stages)
        self._recorder, self._now, self._group = recorder, clock, group
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._counted: Counter[str] = Counter()
        self._phones: list[tuple[float, int, int]] = []
        self._make_apps()

    def _prepare(self, count: int, phones: Phones) -> None:
        """Chooses this worker's part of `count` apps."""
        self.indices = self._share.indices(count)
        self.randoms = [Random(f"{self._plan.seed} {self.kind} {index}") for index in self.indices]
        self.turns = [0] * len(self.indices)
        self._habits = phones
        self._flapping = [spread(index, SILVER) < phones.lossy for index in self.indices]

    async def run(self, start: float, stopping: asyncio.Event) -> None:
        """Drives the apps from `start` (epoch ms) until the stages are over or `stopping` is set."""
        self._begin(start)
        storms = self._course.storms()
        adjusted = 0.0
        while not stopping.is_set():
            now = self._now()
            at = (now - start) / 1000
            if now - adjusted >= ADJUST_EVERY:
                adjusted = now
                self._adjust(now, at)
                self._flap(now)
            if at >= self._course.total and not self._unfinished():
                break
            if storms and at >= storms[0][0]:
                self._storm(storms.pop(0)[1])
            await self._act(now)
        self._finish()

    def count(self) -> None:
        """Adds what is counted in the apps to the recorder, and looks for half-open connections."""
        sums = Counter({name: sum(getattr(app, name) for app in self.apps) for name in self.counted})
        self._recorder.counts.update({name: total - self._counted[name] for name, total in sums.items()})
        self._counted = sums
        if heartbeat := self._scenario.heartbeat:
            now = time.monotonic()
            for app in self.apps[: self.active]:
                app.check_alive(now, heartbeat)

    async def stop(self, within: float) -> None:
        """Closes all connections; gives up on what has not ended within `within` s."""
        await stop(self.apps, self._tasks.values(), within)

    # for subclasses

    @abstractmethod
    def _make_apps(self) -> None:
        """Makes `apps`, after `_prepare`."""

    def _begin(self, start: float) -> None:
        """Called once, at the beginning."""

    @abstractmethod
    async def _act(self, now: float) -> None:
        """Does what is due, and sleeps for a moment."""

    @abstractmethod
    def _come(self, place: int, now: float) -> None:
        """An app takes part from now on."""

    def _leave(self, place: int, now: float) -> None:
        """An app takes no part any more."""

    def _unfinished(self) -> bool:
        """Whether something is left to do that the stages alone do not give the time for."""
        return False

    def _finish(self) -> None:
        """Called when the stages are over."""

    def _may_flap(self, app: AppT) -> bool:
        """Whether a phone may lose its network now, or get it back."""
        return True

    # inside

    def _adjust(self, now: float, at: float) -> None:
        """Has as many apps take part as the stage wants."""
        count = getattr(self._scenario, self.kind).count
        wanted = round(count * getattr(self._course.levels(at), self.kind))
        target = self._target = sum(1 for index in self.indices if index < wanted)
        for place in range(self.active, min(target, self.active + CONNECTED_AT_ONCE)):
            self.active = place + 1
            self.turns[place] += 1
            self.apps[place].reconnect()
            if place not in self._tasks:
                self._tasks[place] = self._group.create_task(self.apps[place].run())
            self._come(place, now)
            if self._flapping[place]:
                self._plan_flap(now, place, self._habits.up)
        for place in range(self.active - 1, target - 1, -1):
            self.turns[place] += 1
            self.active = place
            self._leave(place, now)

    def _plan_flap(self, now: float, place: int, mean: float) -> None:
        due = now + 1000 * self.randoms[place].expovariate(1 / mean)
        heapq.heappush(self._phones, (due, place, self.turns[place]))

    def _flap(self, now: float) -> None:
        """Takes the network from phones whose time it is, or gives it back."""
        while self._phones and self._phones[0][0] <= now:
            _, place, turn = heapq.heappop(self._phones)
            app = self.apps[place]
            if turn != self.turns[place]:
                continue
            if not self._may_flap(app):
                heapq.heappush(self._phones, (now + ADJUST_EVERY, place, turn))
            elif app.reachable:
                app.disconnect()
                self._recorder.counts["losses"] += 1
                self._plan_flap(now, place, self._habits.down)
            else:
                app.reconnect()
                self._plan_flap(now, place, self._habits.up)

    def _storm(self, stage: Stage) -> None:
        if stage.who in ("all", self.kind):
            for place in range(self.active):
                if self.randoms[place].random() < stage.share:
                    self.apps[place].cut()
                    self._recorder.counts["cuts"] += 1
