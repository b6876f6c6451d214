"""Rounds of chaos: clients are connected, faults are caused and undone, and the judge checks the result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import NamedTuple, Self

import aiohttp

from loadtest.clients.target import Identity, Target, minting
from loadtest.clients.vendor import Vendor
from streamer.accounts.tokens import make_token
from streamer.storage import seed
from tests.chaos.balancer import Balancer
from tests.chaos.crowd import COMES_BACK, Crowd, Mover
from tests.chaos.faults import Fault, plan
from tests.chaos.judge import ALERTED, Judge
from tests.chaos.stage import Stage
from tests.support.apps import SECRET, eventually

MOVERS = 12
WATCHERS = 6
GUESTS = 8
HZ = 4.0
TRUE_WITHIN = 5.0
"""Seconds after healing within which all checks must pass."""
ALERTS_WITHIN = 40.0
"""Additional seconds for webhooks, whose claims and pauses after failures last that long."""
POSITIONS_WITHIN = 5.0
"""Additional seconds for vendors.lat and long, whose updates the server merges over time."""


class Verdict(NamedTuple):
    """The outcome of a round: its faults, the time to heal, the time until all checks passed, and the failed checks."""

    seed: int
    faults: list[Fault]
    healed_in: float
    true_in: float
    latest: float
    wrong: list[str]

    def __str__(self) -> str:
        faults = "; ".join(map(str, self.faults))
        if not self.wrong:
            return (
                f"seed {self.seed}: true {self.true_in:.2f} s after healing, healed in {self.healed_in:.1f} s,"
                f" latest map {self.latest:.1f} s late: {faults}"
            )
        lines = "\n".join(f"    {line}" for line in self.wrong[:12])
        return f"seed {self.seed} FAILED ({len(self.wrong)} faults): {faults}\n{lines}"


class Chaos:
    """An async context manager in which rounds are run."""

    def __init__(self, folder: Path, *, true_within: float = TRUE_WITHIN) -> None:
        self.stage = Stage(folder)
        self._true_within = true_within
        self._stack = AsyncExitStack()
        self._guests: list[Identity] = []
        self._round = 0
        self._began = int(time.time() * 1000)

    async def __aenter__(self) -> Self:
        try:
            stage = await self._stack.enter_async_context(self.stage)
            seeded = [Identity(*one) for one in await seed.seed(stage.postgres.url, MOVERS + GUESTS)]
            self._guests = seeded[MOVERS:]
            await self._alert(seeded[0])
            self._target = Target.parse(stage.url)
            self.crowd = Crowd(self._target, seeded[:MOVERS], WATCHERS, SECRET, Random(0), HZ)
            self.judge = Judge(stage, self.crowd)
            await self._stack.enter_async_context(self.crowd.about())
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def play(self, seed: int, faults: Sequence[Fault] | None = None) -> Verdict:
        """Runs one round with the faults of its seed, or with given faults."""
        faults = list(plan(seed) if faults is None else faults)
        crowd, judge, stage = self.crowd, self.judge, self.stage
        since = int(time.time() * 1000)
        crowd.moving = True
        # Otherwise all clients would be on the server that failed least after some rounds.
        balancer = stage.wires["wire clients"]
        assert isinstance(balancer, Balancer)
        balancer.even()
        await crowd.ready(self._true_within)
        began, crowd.latest = time.monotonic(), 0.0
        before = judge.held()
        self._round += 1
        async with self._guest(self._guests[self._round % GUESTS], Random(seed)):
            outcomes = await asyncio.gather(*map(stage.fail, faults), return_exceptions=True)
        wrong = [f"{fault}: {outcome!r}" for fault, outcome in zip(faults, outcomes, strict=True) if outcome]
        await stage.healed()
        healed = time.monotonic()
        crowd.moving = False
        wrong += await self._judged(healed, since)
        true_in = time.monotonic() - healed
        wrong += judge.busy(before, time.monotonic() - began)
        wrong += await self._given_back()
        return Verdict(seed, faults, healed - began, true_in, crowd.latest, wrong)

    async def settled(self) -> list[str]:
        """Returns the faults of all stored pings."""
        return await self.judge.storage(self._began)

    async def _judged(self, healed: float, since: int) -> list[str]:
        judge = self.judge
        while wrong := judge.apps() + judge.counts():
            if time.monotonic() - healed > self._true_within:
                return wrong
            await asyncio.sleep(0.02)
        while wrong := await self.stage.unready():
            if time.monotonic() - healed > self._true_within:
                return wrong
            await asyncio.sleep(0.05)
        while wrong := await judge.storage(since):
            if time.monotonic() - healed > self._true_within + POSITIONS_WITHIN:
                return wrong
            await asyncio.sleep(0.2)
        # Webhooks claimed by a killed process are sent again a little later.
        while wrong := judge.alerts():
            if time.monotonic() - healed > self._true_within + ALERTS_WITHIN:
                return wrong
            await asyncio.sleep(0.2)
        # The checks must also pass later; counts change some seconds after a vendor leaves.
        return judge.apps()

    async def _given_back(self) -> list[str]:
        """Returns resources that still exceed their limits after a while, when closing connections have ended."""
        until = time.monotonic() + self._true_within
        while wrong := self.judge.resources():
            if time.monotonic() > until:
                return wrong
            await asyncio.sleep(0.2)
        return []

    async def _alert(self, identity: Identity) -> None:
        """Creates an alert before any vendor is on the map, and waits until it has started."""
        area = {"center": {"lat": ALERTED.lat, "long": ALERTED.long}, "radius": ALERTED.radius}
        receiver = self.stage.receiver
        asked = {"area": area, "on": ["entered", "left"], "quiet": 0, "url": receiver.url}
        headers = {"Authorization": f"Bearer {make_token(SECRET, identity.clerk_id, 600)}"}
        async with aiohttp.ClientSession(self.stage.url, headers=headers) as session:
            async with session.post("/v1/alerts", json=asked) as answer:
                created = await answer.json()
            receiver.secrets[created["id"]] = created["secret"]

            async def begun() -> bool:
                async with session.get(f"/v1/alerts/{created['id']}") as answer:
                    return "startedAt" in await answer.json()

            await eventually(begun, "an alert that has begun")

    @asynccontextmanager
    async def _guest(self, identity: Identity, random: Random) -> AsyncIterator[None]:
        """Has a vendor report during the round and then disappear without a close frame."""
        app = Vendor(self._target, identity, minting(identity, SECRET), random)
        app.longest_wait = COMES_BACK
        self.judge.gone.pop(identity.vendor_id, None)
        running = asyncio.create_task(app.run(), name="guest")
        mover = Mover(app, random)
        mover.move()
        try:
            yield
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await app.settled.wait()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self.judge.gone[identity.vendor_id] = time.monotonic()
