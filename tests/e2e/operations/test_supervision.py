"""Otherwise a dead task would leave a server that looks healthy but does only part of its work."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from streamer.storage import seed
from tests.conftest import Running, Serve
from tests.support.apps import CustomerApp, VendorApp, circle, eventually

PASSING = ("Task-", "probe", "close", "held", "read ahead", "farewell", "load ", "broker-cluster-map")
"""The names of short-lived tasks: of a connection, a query, a drain."""


def of_the_server(before: set[asyncio.Task[Any]]) -> dict[str, asyncio.Task[Any]]:
    """Returns the long-lived tasks started since."""
    found = asyncio.all_tasks() - before
    return {task.get_name(): task for task in found if not task.get_name().startswith(PASSING)}


async def readiness(running: Running) -> tuple[int, str]:
    """Returns the answer of `/readyz`."""
    async with aiohttp.ClientSession() as session, session.get(f"{running.url}/readyz") as response:
        return response.status, await response.text()


async def test_every_long_lived_task_is_missed_and_started_again(serve: Serve, database_url: str) -> None:
    """Each task is cancelled, as by a bug in a library: afterwards both processes still store and show pings."""
    (vendor,) = await seed.seed(database_url, 1)
    other = await serve()
    before = asyncio.all_tasks()
    running = await serve()
    tasks = of_the_server(before)
    assert {
        "ticker",
        "expire",
        "heartbeat",
        "partitions",
        "batcher",
        "positions",
        "broker-publisher",
        "broker-subscriber",
    } <= set(tasks)
    for task in tasks.values():
        task.cancel()
    await asyncio.wait(tasks.values(), timeout=10)
    assert running.server.supervisor.deaths >= 8

    async def ready() -> bool:
        return (await readiness(running))[0] == 200

    await eventually(ready, "a server that is ready", 20)
    await eventually(lambda: set(of_the_server(before)) >= set(tasks), "all tasks again", 20)
    async with VendorApp(running.url, vendor.clerk_id) as app, CustomerApp(other.url) as customer:
        await customer.watch("w", circle(52.0, 21.0, 3000))
        await app.ping(52.0, 21.0)
        await app.acked(1, 20)
        await customer.sees("w", {vendor.vendor_id: (52.0, 21.0)}, 20)


async def test_a_task_that_can_not_go_on_makes_the_server_unready(serve: Serve) -> None:
    """`/readyz` fails and names the task: a load balancer removes the process, and an operator sees the cause."""
    running = await serve()

    async def broken() -> None:
        raise ValueError("no way")

    running.server.supervisor.start({"cartographer": broken})

    async def told() -> bool:
        status, text = await readiness(running)
        return status == 503 and "cartographer" in text and "ValueError: no way" in text

    await eventually(told, "a cause in /readyz", 20)
