"""One worker's vendors and customers against a stand-in: what is timed, what is not, and from when."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import orjson
from aiohttp import web

from loadtest.behaviour import City, LookAround
from loadtest.clients.customer import Customer
from loadtest.clients.target import Identity, Target
from loadtest.clients.vendor import Ledger, Ping
from loadtest.engine import scenario as scenarios
from loadtest.engine.audience import Audience
from loadtest.engine.fleet import Fleet
from loadtest.engine.population import Plan, Share, Trace
from loadtest.engine.scenario import Customers, Scenario
from loadtest.measure.recording import Recorder
from tests.support.apps import eventually
from tests.support.loadtest_stand_in import standing_in

VENDORS = [Identity(f"v{number}", f"c{number}", "") for number in range(8)]
CITY = City(52.2297, 21.0122, 500.0, 100.0)


def now() -> float:
    """Epoch ms."""
    return time.time() * 1000


def share(target: Target, scenario: Scenario, kind: Any = "vendors") -> Share:
    """All of a scenario for one worker."""
    return Share(kind, 0, Plan(target, "s" * 32, scenario, "x", VENDORS, sampled=0))


def delays(recorder: Recorder, name: str) -> list[float]:
    """What was timed, in seconds, sorted."""
    steps, counts = recorder.take()["delays"].get(name, ([], []))
    return sorted(step / 10_000 for step, count in zip(steps, counts, strict=True) for _ in range(count))


async def test_a_server_that_stops_makes_every_ping_due_meanwhile_late() -> None:
    """No coordinated omission: pings go on being due and sent, and each waits from then until the server moves on."""
    arrived: list[float] = []

    async def stalled(socket: web.WebSocketResponse) -> None:
        await socket.send_str('{"type":"hello","vendorId":"v0","time":0,"durable":null,"maxBatch":500}')
        began, seq, released = time.monotonic(), 0, False
        while True:
            try:
                message = await socket.receive(timeout=0.05)
            except TimeoutError:
                message = None
            if message is not None:
                if message.type != web.WSMsgType.TEXT:
                    return
                arrived.append(time.monotonic() - began)
                seq = orjson.loads(message.data)["seq"]
            if time.monotonic() - began > 1.2 and (message is not None or not released):
                released = True
                await socket.send_str(f'{{"type":"ack","seq":{seq}}}')

    movement = [{"kind": "parked", "every": 0.05}]
    wanted = [("vendors.count", 1), ("vendors.movements", movement), ("stages", [{"kind": "hold", "seconds": 1.1}])]
    scenario = scenarios.load("quiet-town", [*wanted, ("warmup", 0)])
    recorder = Recorder()
    async with standing_in({"/v1/vendor": stalled}) as target, asyncio.TaskGroup() as group:
        fleet = Fleet(share(target, scenario), recorder, now, group)
        await fleet.run(now(), asyncio.Event())
        settled = await fleet.settle(10.0)
        await fleet.stop(5.0)
    assert settled["newest"].keys() == {"v0"}
    late = delays(recorder, "ack")
    assert len(late) == len(arrived) >= 15
    # not one long delay and then short ones, as of a client that waits for each answer: evenly from long to short
    assert late[-1] > 0.8
    assert late[len(late) // 2] > 0.35
    assert late[-1] - late[0] > 0.5


async def test_backlogs_are_sent_and_not_timed() -> None:
    """What a phone collected without a network was held up by the phone: acked and stored, but no delay of ours."""
    stamps: list[int] = []

    async def acking(socket: web.WebSocketResponse) -> None:
        await socket.send_str('{"type":"hello","vendorId":"v0","time":0,"durable":null,"maxBatch":500}')
        async for message in socket:
            decoded = orjson.loads(message.data)
            pings = decoded.get("pings", [decoded])
            stamps.extend(ping["timestamp"] for ping in pings)
            await socket.send_str(f'{{"type":"ack","seq":{pings[-1]["seq"]}}}')

    movement = [{"kind": "driving", "every": 0.05}]
    scenario = scenarios.load(
        "quiet-town",
        [
            *(("vendors.count", 4), ("vendors.movements", movement), ("warmup", 0)),
            *(("vendors.phones", {"lossy": 1, "up": 0.2, "down": 0.2}), ("stages.0.seconds", 0.1)),
            ("stages.1.seconds", 1.5),
        ],
    )
    recorder = Recorder()
    async with standing_in({"/v1/vendor": acking}) as target, asyncio.TaskGroup() as group:
        fleet = Fleet(share(target, scenario), recorder, now, group)
        await fleet.run(now(), asyncio.Event())
        await fleet.settle(10.0)
        fleet.count()
        counts = dict(recorder.counts)
        await fleet.stop(5.0)
    assert counts["backlog"] > 0
    assert counts["losses"] > 0
    assert counts["due"] == counts["sent"] == counts["acked"] <= len(stamps)
    assert 0 < len(delays(recorder, "ack")) <= counts["acked"] - counts["backlog"]
    assert sum(stamp % 2 for stamp in stamps) >= counts["backlog"]


async def test_a_trace_is_sent_whole_by_a_machine_that_is_late(tmp_path: Path) -> None:
    """What a busy machine left out would be missing from every comparison with another run of the same trace."""
    stamps: Counter[str] = Counter()

    async def acking(socket: web.WebSocketResponse) -> None:
        await socket.send_str('{"type":"hello","vendorId":"v0","time":0,"durable":null,"maxBatch":500}')
        async for message in socket:
            decoded = orjson.loads(message.data)
            pings = decoded.get("pings", [decoded])
            stamps["stored"] += len(pings)
            await socket.send_str(f'{{"type":"ack","seq":{pings[-1]["seq"]}}}')

    trace = tmp_path / "trace.csv.gz"
    with gzip.open(trace, "wt") as file:
        file.write("vehicle,timestamp,lat,long\n")
        for vendor in VENDORS:
            file.writelines(f"{vendor.vendor_id},2024-02-19T12:00:0{n}Z,52.2{n},21.0\n" for n in range(5))
    stages = [{"kind": "hold", "seconds": 10}]
    scenario = scenarios.load("quiet-town", [("vendors.count", len(VENDORS)), ("stages", stages), ("warmup", 0)])
    recorder = Recorder()
    async with standing_in({"/v1/vendor": acking}) as target, asyncio.TaskGroup() as group:
        whole = share(target, scenario)
        whole = replace(whole, plan=replace(whole.plan, trace=Trace(str(trace), 1_708_344_000_000, 1.0)))
        fleet = Fleet(whole, recorder, now, group)
        await fleet.run(now() - 60_000, asyncio.Event())  # no vendor came before all was over
        await fleet.settle(10.0)
        await fleet.stop(5.0)
    assert stamps["stored"] == 5 * len(VENDORS)


def updated(moved: list[tuple[str, int]], entered: list[tuple[str, int]]) -> str:
    """An update frame with positions of these vendors at these times."""

    def fix(vendor_id: str, timestamp: int) -> dict[str, Any]:
        return {"vendorId": vendor_id, "lat": 52.0, "long": 21.0, "timestamp": timestamp}

    return orjson.dumps(
        {
            **{"type": "update", "id": "map", "moved": [fix(*one) for one in moved]},
            "entered": [{**fix(*one), "name": "n", "open": True, "online": True} for one in entered],
        }
    ).decode()


async def test_only_delays_that_mean_something_are_counted() -> None:
    """Of a frame: moved fixes of this run's vendors that were due with a network; all positions are counted."""
    recorder = Recorder()

    async def show(socket: web.WebSocketResponse) -> None:
        watch = orjson.loads((await socket.receive()).data)
        assert watch["area"]["radius"] == 700
        await socket.send_str('{"type":"snapshot","id":"map","vendors":[]}')
        then = int(now()) // 2 * 2 - 100
        await socket.send_str(
            updated([("v1", then), ("v2", then + 1), ("foreign", then - 50_000)], [("v3", then - 9000)])
        )
        await socket.send_str('{"type":"unwatched","id":"one"}')
        async for _ in socket:
            pass

    async with standing_in({"/v1/watch": show}) as target, asyncio.TaskGroup() as group:
        customer = Customer(
            *(target, None, Random(1), recorder, now),
            habits=(habits := Customers(radius=(700, 700))),
            known={identity.vendor_id for identity in VENDORS},
        )
        customer.start(LookAround(customer, CITY, Random(1), ["v1"], habits))
        group.create_task(customer.run())
        await eventually(lambda: recorder.counts["frames"] == 1, "a frame")
        counts = dict(recorder.counts)
        customer.stop()
    assert (counts["positions"], counts["snapshots"]) == (4, 1)
    found = recorder.take()["delays"]
    assert found["watch"][1] == [1]
    assert 0.1 <= found["watch"][0][0] / 10_000 < 5
    assert found["snapshot"][1] == [1]
    assert customer.faults == 0


async def test_customers_look_around() -> None:
    """They pan, follow, sleep and come back, each with a watch as the contract wants it, and ramp down to none."""
    asked: list[dict[str, Any]] = []

    async def answer(socket: web.WebSocketResponse) -> None:
        async for message in socket:
            watch = orjson.loads(message.data)
            asked.append(watch)
            kind = "snapshot" if watch["type"] == "watch" else "unwatched"
            await socket.send_json({"type": kind, "id": watch["id"], "vendors": []})

    scenario = scenarios.load(
        "quiet-town",
        [
            *(("customers.count", 6), ("customers.dwell", 0.1), ("customers.asleep", 0.1), ("warmup", 0)),
            (
                "stages",
                [
                    {"kind": "hold", "seconds": 1.3},
                    {"kind": "ramp", "seconds": 0.1, "to": 0},
                    {"kind": "hold", "seconds": 0.4},
                ],
            ),
        ],
    )
    recorder = Recorder()
    async with standing_in({"/v1/watch": answer}) as target, asyncio.TaskGroup() as group:
        audience = Audience(share(target, scenario, "customers"), recorder, now, group)
        await audience.run(now(), asyncio.Event())
        assert audience.active == 0
        await audience.stop(5.0)
        audience.count()
    for name in ("pans", "follows", "sleeps", "snapshots"):
        assert recorder.counts[name] > 0, name
    assert recorder.counts["faults"] == 0
    assert {watch["id"] for watch in asked} == {"map", "one"}
    assert len({orjson.dumps(watch["area"]) for watch in asked if "area" in watch}) > 6
    found = recorder.take()["delays"]
    assert found["snapshot"]
    assert found["pan"]


def test_a_ledger_knows_which_pings_surely_went_live() -> None:
    """A view is judged by it: a fix acked 9 min after its time is live, one after 11 history; between nobody knows."""
    ledger = Ledger(keep=True)
    ledger.add([Ping(1_000, 1.0, 2.0, 1_000)], 2_000)
    ledger.add([Ping(500, 3.0, 4.0, 500)], 700_500)
    assert ledger.newest is not None
    assert (ledger.newest.timestamp, ledger.unsure) == (1_000, False)
    ledger.add([Ping(5_000, 5.0, 6.0, 5_000)], 605_000)
    assert ledger.unsure
    ledger.add([Ping(700_000, 7.0, 8.0, 700_000)], 700_100)
    assert (ledger.newest.timestamp, ledger.unsure) == (700_000, False)
    assert ledger.pings()[0][:3] == (1_000, 1.0, 2.0)
    assert ledger.count == 4
