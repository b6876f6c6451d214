"""A process with a crowd of moving vendors and no sockets: `python -m tests.support.crowd REDIS_URL COUNT`.

To servers on that Redis it is another process: it writes its vendors and answers requests for counts. Vendors are in
towns all over the world, a fifth of them in the first one, at WARSAW.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.apps import eventually
from tests.support.paths import ROOT
from tests.support.peers import Peer, Position
from tests.support.world import WARSAW

TOWNS = 400
SPREAD = 0.06
"""Degrees of latitude around a town's middle in which two of three vendors are."""
EVERY = 10.0
"""Seconds between two pings of a vendor."""
STEPS = 100
"""Parts of EVERY: in each of them one of this many vendors reports."""


def places(count: int) -> list[Position]:
    """Returns the vendors' initial positions, always the same."""
    chance = random.Random(5)
    towns = [WARSAW, *((chance.uniform(-40, 60), chance.uniform(-180, 180)) for _ in range(TOWNS - 1))]
    chosen = chance.choices(towns, [1.4, *(1 / (3 + rank) for rank in range(1, TOWNS))], k=count)
    return [_near(chance, town) for town in chosen]


def _near(chance: random.Random, town: Position) -> Position:
    lat = town[0] + chance.gauss(0, SPREAD)
    long = town[1] + chance.gauss(0, SPREAD / math.cos(math.radians(town[0])))
    return lat, (long + 180) % 360 - 180


async def run(redis_url: str, count: int) -> None:
    """Serves the vendors and moves them until cancelled; prints `ready` once all are in Redis."""
    starts = places(count)
    async with Peer(redis_url, "crowd") as peer:
        for number, start in enumerate(starts):
            peer.serve(f"v{number}", start)
            if number % 500 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: not peer.broker.pending, "all written to Redis")
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for step in range(sys.maxsize):
            for number in range(step % STEPS, count, STEPS):
                angle = number + step / STEPS
                lat, long = starts[number]
                peer.ping(f"v{number}", (lat + 0.001 * math.sin(angle), long + 0.001 * math.cos(angle)))
            due = max(due + EVERY / STEPS, loop.time())
            await asyncio.sleep(due - loop.time())


@asynccontextmanager
async def crowd(redis_url: str, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs such a process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.crowd", redis_url, str(count), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        while (line := await process.stdout.readline()) != b"ready\n":
            assert line, "it ended"
        yield process
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
