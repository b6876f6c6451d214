"""Customers against a stand-in: what a zoomed-out map holds is compared with a fresh snapshot of the same box."""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import Any

import orjson
import pytest
from aiohttp import web

from loadtest.clients.customer import Customer
from loadtest.clients.target import Identity, Target
from loadtest.engine import scenario as scenarios
from loadtest.engine.audience import Audience
from loadtest.engine.population import Plan, Share
from loadtest.engine.scenario import Customers
from loadtest.engine.verification import Live
from loadtest.measure.recording import Recorder
from tests.support.loadtest_stand_in import standing_in


def groups(count: int) -> list[dict[str, Any]]:
    """One group with this many vendors."""
    return [{"group": "g1", "lat": 52.0, "long": 21.0, "count": count, "open": count, "online": count}]


def test_a_second_is_compared_among_the_customers_of_the_same_second() -> None:
    """A busy second is late for all customers and accuses none; with too few customers nothing is compared."""
    customers = [
        Customer(Target("h", 1, False), None, Random(1), Recorder(), time.time, habits=Customers(), known=())
        for _ in range(6)
    ]
    audience = Audience.__new__(Audience)
    audience.apps = customers
    for usual in (40.0, 900.0):
        for customer in customers:
            customer.recent = [usual, usual + 10, usual + 20]
        customers[5].recent = [usual + 160]
        audience.compare()
    customers[0].recent = [9999.0]
    audience.compare()
    found = [customer.summary() for customer in customers]
    assert [one["later_ms"] for one in found] == [0, 0, 0, 0, 0, 150]
    assert [one["seconds"] for one in found] == [2] * 6
    assert customers[0].recent == []


@pytest.mark.parametrize("skipping", [False, True])
async def test_a_skipped_update_of_counts_is_named(skipping: bool) -> None:
    """The third of the counts' updates is never sent to the first watch: the map is wrong from then on."""

    async def serve(socket: web.WebSocketResponse) -> None:
        count = 5
        async for message in socket:
            watch = orjson.loads(message.data)
            assert watch["as"] == "counts"
            assert set(watch["area"]) == {"ne", "sw"}
            await socket.send_json({"type": "snapshot", "id": watch["id"], "groups": groups(count)})
            if watch["id"] == "counts":
                for count in (6, 7, 8):
                    if not (skipping and count == 8):
                        await socket.send_json({"type": "update", "id": "counts", "groups": groups(count)})

    scenario = scenarios.load(
        "quiet-town",
        [
            *(("customers.count", 2), ("customers.zoomed", 1), ("customers.dwell", 3600), ("warmup", 0)),
            ("stages", [{"kind": "hold", "seconds": 0.5}]),
        ],
    )
    async with standing_in({"/v1/watch": serve}) as target, asyncio.TaskGroup() as group:
        plan = Plan(target, "s" * 32, scenario, "x", [Identity("v", "c", "")], sampled=2)
        audience = Audience(Share("customers", 0, plan), Recorder(), lambda: time.time() * 1000, group)
        await audience.run(time.time() * 1000, asyncio.Event())
        checks = await audience.verify(Live({}, set()), set())
        await audience.stop(5.0)
    assert [customer.violations for customer in audience.apps] == [[], []]
    assert checks["counts"]["watchers"] == 2
    if skipping:
        assert checks["counts"]["differences"] == 2
        assert "group g1 is held as 7 vendors, expected 8 as in a fresh snapshot" in checks["counts"]["shown"][0]
    else:
        assert checks["counts"]["ok"], checks["counts"]
