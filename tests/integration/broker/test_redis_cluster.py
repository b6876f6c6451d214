"""The broker on a Redis Cluster: cells on three nodes, a lost node, a slot that moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.crc import key_slot

from streamer.broker.counts import ASK
from streamer.broker.redis_schema import BROADCAST, channel, positions_key
from streamer.broker.stream import Feed
from streamer.geo.grid import bus_cell, bus_cover
from streamer.geo.shapes import Circle
from streamer.ingest import position
from tests.integration.broker.conftest import written
from tests.support.apps import circle, eventually, now_ms
from tests.support.cluster_node import ClusterNode
from tests.support.peers import Peer, Position

SLOTS = 16384


class Cluster:
    """Three Valkeys that share the slots."""

    def __init__(self, servers: list[ClusterNode], clients: list[redis.asyncio.Redis]) -> None:
        self.servers = servers
        self.clients = clients
        self.url = f"redis+cluster://127.0.0.1:{servers[0].port}/0"

    async def ask(self, number: int, *words: Any) -> Any:
        """A node's answer."""
        return await self.clients[number].execute_command(*words)  # type: ignore[no-untyped-call]

    async def serving(self, name: bytes) -> int:
        """Returns the node that serves a key or channel."""
        slot, port = key_slot(name), 0
        for first, last, master, *_ in await self.ask(0, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                port = master[1]
        return [server.port for server in self.servers].index(port)

    async def place_on(self, number: int) -> Position:
        """Returns a position whose cell is on this node."""
        for step in range(200):
            at = (52.0 + step * 0.25, 21.0 + step * 0.25)
            if await self.serving(channel(bus_cell(*at))) == number:
                return at
        raise AssertionError("all cells are on the other nodes")

    async def whole(self, *numbers: int) -> None:
        """Waits until these nodes are part of a working cluster."""

        async def works() -> bool:
            states = [await self.ask(number, "CLUSTER", "INFO") for number in numbers]
            return all("cluster_state:ok" in str(state) and "cluster_known_nodes:3" in str(state) for state in states)

        await eventually(works, "a cluster that works", 20)


@pytest.fixture
async def cluster(own_folder: Path) -> AsyncIterator[Cluster]:
    """A separate cluster whose nodes also serve without the others."""
    async with AsyncExitStack() as stack:
        servers = [ClusterNode(own_folder.with_name(f"{own_folder.name}_{number}")) for number in range(3)]
        for server in servers:
            await stack.enter_async_context(server)
        clients = [
            await stack.enter_async_context(redis.asyncio.Redis.from_url(server.url, protocol=2)) for server in servers
        ]
        made = Cluster(servers, clients)
        for number in range(3):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            await made.ask(number, "CLUSTER", "ADDSLOTSRANGE", first, last)
            await made.ask(number, "CONFIG", "SET", "cluster-require-full-coverage", "no")
            if number:
                _, bus_port = await made.ask(0, "CONFIG", "GET", "cluster-port")
                await made.ask(number, "CLUSTER", "MEET", "127.0.0.1", servers[0].port, int(bus_port))
        await made.whole(0, 1, 2)
        yield made


async def test_on_three_nodes(cluster: Cluster) -> None:
    """Trucks move between nodes; each process receives from each node only the cells that it watches."""
    spots = [await cluster.place_on(number) for number in range(3)]
    async with Peer(cluster.url, "one") as one, Peer(cluster.url, "other") as other:
        for at in spots:
            assert key_slot(channel(bus_cell(*at))) == key_slot(positions_key(bus_cell(*at)))
        looks = [await other.watch(area=circle(*at, 5_000)) for at in spots]
        followed = await other.watch(vendors=["truck", "bus"])
        one.serve("truck", spots[0])
        other.serve("bus", spots[2])
        for turn in (0, 1, 2, 0):
            one.ping("truck", spots[turn])
            await followed.sees({"truck": spots[turn], "bus": spots[2]})
            for number, look in enumerate(looks):
                expected = {"truck": spots[turn]} if number == turn else {}
                await look.sees(expected | ({"bus": spots[2]} if number == 2 else {}))
        assert followed.client.left == []
        wanted = {channel(cell) for at in spots for cell in bus_cover(Circle(*at, 5_000))}
        for number in range(3):
            heard = set(await cluster.ask(number, "PUBSUB", "SHARDCHANNELS"))
            assert heard - {BROADCAST, ASK} == {name for name in wanted if await cluster.serving(name) == number}
        one.delete("truck")
        await followed.sees({"bus": spots[2]})
        for number in range(3):
            keys = await cluster.ask(number, "KEYS", "v2:at:*")
            assert b"v2:at:truck" not in keys


async def test_a_node_is_lost(cluster: Cluster) -> None:
    """Cells on other nodes are not affected; those on the lost node work within each process, and recover with it."""
    broadcasting = await cluster.serving(BROADCAST)
    lost, kept = (number for number in range(3) if number != broadcasting)
    there, here = await cluster.place_on(lost), await cluster.place_on(kept)
    async with Peer(cluster.url, "one", grace=1.0) as one, Peer(cluster.url, "other", grace=1.0) as other:
        one.serve("truck", there)
        one.serve("bus", here)
        own, far = [await peer.watch(area=circle(*there, 5_000)) for peer in (one, other)]
        unhurt = await other.watch(area=circle(*here, 5_000))
        await own.sees({"truck": there})
        await far.sees({"truck": there})
        await unhurt.sees({"bus": here})
        cluster.servers[lost].kill()
        await eventually(lambda: not one.broker.up and not other.broker.up, "the node found away")
        near, beside = (there[0] + 0.001, there[1]), (here[0] + 0.001, here[1])
        one.ping("truck", near)
        one.ping("bus", beside)
        await own.sees({"truck": near})
        await unhurt.sees({"bus": beside})
        assert set(far.view) == {"truck"}
        late = await other.watch(area=circle(*here, 6_000))
        await late.sees({"bus": beside})
        await cluster.servers[lost].start()
        await one.joined(30)
        await other.joined(30)
        await far.sees({"truck": near})
        await written(one, "truck")
        async with Peer(cluster.url, "late") as newcomer:
            await (await newcomer.watch(vendors=["truck", "bus"])).sees({"truck": near, "bus": beside})
            await (await newcomer.watch(area=circle(*there, 5_000))).sees({"truck": near})
        for look in (own, far, unhurt, late):
            assert look.client.left == look.client.vanished == []


async def test_a_slot_moves(cluster: Cluster) -> None:
    """While slots move to another node, updates continue and subscriptions move as well."""
    source, target = 0, 1
    at = await cluster.place_on(source)
    slot = key_slot(channel(bus_cell(*at)))
    ids = [(await cluster.ask(number, "CLUSTER", "MYID")).decode() for number in range(3)]
    async with Peer(cluster.url, "one") as one, Peer(cluster.url, "other") as other:
        one.serve("truck", at)
        look = await other.watch(area=circle(*at, 5_000))
        await look.sees({"truck": at})
        await cluster.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        await cluster.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        one.ping("truck", (at[0] + 0.001, at[1]))
        await look.sees({"truck": (at[0] + 0.001, at[1])})
        port = cluster.servers[target].port
        while keys := await cluster.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            await cluster.ask(source, "MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
            one.ping("truck", (at[0] + 0.002, at[1]))
            await asyncio.sleep(0.1)
        for number in (target, source, 2):
            await cluster.ask(number, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        one.ping("truck", (at[0] + 0.003, at[1]))
        await look.sees({"truck": (at[0] + 0.003, at[1])})

        async def moved() -> bool:
            heard = [channel(bus_cell(*at)) in await cluster.ask(n, "PUBSUB", "SHARDCHANNELS") for n in range(3)]
            return heard == [False, True, False]

        await eventually(moved, "the channel heard on its new node only")
        one.ping("truck", (at[0] + 0.004, at[1]))
        await look.sees({"truck": (at[0] + 0.004, at[1])})
        assert look.client.left == look.client.vanished == []


async def test_the_feed_is_one_stream(cluster: Cluster) -> None:
    """Other services read one stream, whatever nodes the vendors' cells are on."""
    async with Peer(cluster.url, "one") as one:
        feed = Feed(
            one.broker.run, lambda: [("truck", True, True)], "one", now_ms, key="venta:feed", length=1000, interval=1.0
        )
        for number in range(3):
            feed.position(f"truck-{number}", position.Position(number, *await cluster.place_on(number)))
        assert await feed.flush(), feed.outage
        await feed.close()
        there = await cluster.serving(b"venta:feed")
        found = await cluster.ask(there, "XRANGE", "venta:feed", "-", "+")
        assert [fields[b"type"] for _, fields in found] == [b"location"] * 3 + [b"status"]
        assert not await cluster.ask(there, "EXISTS", "{venta:feed}:writers")
