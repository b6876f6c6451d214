"""Snapshots plus updates equal the expected view: random moves of vendors and watches, two processes, real sockets."""

from __future__ import annotations

import asyncio
import csv
import gzip
import math
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.conftest import Serve
from tests.support.apps import CustomerApp, circle
from tests.support.paths import DATA
from tests.support.proxy import Proxy
from tests.support.world import FIJI, NORTH, WARSAW, Position, World, all_of

TRACE = DATA / "warsaw_buses_300veh_2024-02-19.csv.gz"
PLACES = (WARSAW, WARSAW, FIJI, NORTH)


def box(south: float, west: float, north: float, east: float) -> dict[str, Any]:
    """Returns a box in wire format."""
    return {"sw": {"lat": south, "long": west}, "ne": {"lat": north, "long": east}}


def star(centre: Position, reach: float, chance: random.Random) -> dict[str, Any]:
    """Returns a polygon that is not convex, perhaps over the antimeridian."""
    corners = []
    for number in range(9):
        angle, arm = number * math.tau / 9, reach * chance.uniform(0.3, 1.0)
        long = centre[1] + 1.5 * arm * math.cos(angle)
        corners.append([(long + 180) % 360 - 180, centre[0] + arm * math.sin(angle)])
    return {"polygon": corners}


def some_area(world: World) -> dict[str, Any]:
    """Returns an area of any kind with vendors."""
    chance = world.random
    centre = chance.choice(PLACES)
    lat, long = world.near(centre, 0.1)
    kind = chance.randrange(3)
    if kind == 0:
        return circle(lat, long, chance.choice((500, 5_000, 20_000, 60_000)))
    if kind == 1:
        if centre is NORTH:
            return box(chance.uniform(89.5, 89.95), -180, 90, 180)
        half = chance.uniform(0.02, 0.4)
        west, east = ((long + side + 180) % 360 - 180 for side in (-half, half))
        return box(lat - half, west, lat + half, east)
    return star((min(lat, 89.5), long), 0.3 if centre is not NORTH else 0.05, chance)


async def some_watch(world: World, customer: CustomerApp, id: str) -> None:
    """Starts a watch, or moves one while vendors move."""
    chance = world.random
    fields: dict[str, Any] = {}
    if chance.random() < 0.3:
        fields["vendors"] = [v.vendor_id for v in chance.sample(world.vendors, 12)] + ["nobody"]
    else:
        fields["area"] = some_area(world)
    if chance.random() < 0.3:
        fields["open"] = True
    if chance.random() < 0.3:
        fields["interval"] = chance.choice((50, 400))
    await world.watch(customer, id, wait=chance.random() < 0.5, **fields)


async def some_moves(world: World, rounds: int) -> None:
    """Moves vendors: most a little, some far away; some open or close."""
    chance = world.random
    for _ in range(rounds):
        for vendor in chance.sample(world.vendors, len(world.vendors) // 2):
            roll = chance.random()
            if roll < 0.1:
                await world.status(vendor, not vendor.open)
            elif roll < 0.2 or vendor.position is None:
                await world.move(vendor, world.near(chance.choice(PLACES), 0.4))
            else:
                await world.move(vendor, world.near(vendor.position, 0.05))
        await asyncio.sleep(chance.choice((0.0, 0.01, 0.1)))


@pytest.mark.parametrize(("seed", "lag"), [(1, 0.0), (2, 0.02), (3, 0.1)])
async def test_every_view_is_the_truth(serve: Serve, database_url: str, redis_url: str, seed: int, lag: float) -> None:
    """After all moves, on whichever process, each customer's map equals the vendors inside its area.

    A proxy to Redis with random latency reorders messages and reads.
    """
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(redis_url, lag=lag, seed=seed)) for _ in range(2)]
        servers = [await serve(redis_url=proxy.url) for proxy in proxies]
        world = await stack.enter_async_context(World(seed, [server.url for server in servers]))
        await world.populate(database_url, 48)
        customers = [await world.customer(server.url) for server in servers for _ in range(3)]
        for _ in range(5):
            watching = [some_watch(world, customer, f"w{n}") for customer in customers for n in range(2)]
            await all_of([some_moves(world, 4), *watching])
            await world.agree()
        for server in servers:
            assert server.server.broker.up
            assert server.server.broker.gaps == 0


async def test_real_buses(serve: Serve, database_url: str) -> None:
    """Recorded buses of Warsaw, accelerated: every map of the city is correct at each stop."""
    if not TRACE.exists():
        pytest.skip(f"{TRACE} is not there: the trace comes with the project's shared data, not with a clone")
    with gzip.open(TRACE, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["timestamp"] >= "2024-02-19T14:41"]
    names = list(dict.fromkeys(row["vehicle"] for row in rows))[:100]
    rows = [row for row in rows if row["vehicle"] in set(names)][:9000]
    servers = [await serve(), await serve()]
    async with World(7, [server.url for server in servers]) as world:
        await world.populate(database_url, len(names))
        vendor_of = dict(zip(names, world.vendors, strict=True))
        customers = [await world.customer(server.url) for server in servers]
        for customer in customers:
            await world.watch(customer, "centre", area=circle(*WARSAW, 3_000))
            await world.watch(customer, "city", area=box(52.1, 20.8, 52.4, 21.3))
            await world.watch(customer, "star", area=star(WARSAW, 0.1, world.random))
            await world.watch(customer, "mine", vendors=[v.vendor_id for v in world.vendors[:20]])
        for number, row in enumerate(rows):
            await world.move(vendor_of[row["vehicle"]], (float(row["lat"]), float(row["long"])))
            if number % 100 == 0:
                await asyncio.sleep(0.02)
                for customer in customers:
                    await world.watch(customer, "walk", wait=False, area=circle(*world.near(WARSAW, 0.05), 4_000))
            if number % 1500 == 1499:
                await world.agree()
        await world.agree()
