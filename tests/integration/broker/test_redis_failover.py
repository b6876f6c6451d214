"""Redis fails over or refuses writes; meanwhile the maps of processes differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import structlog

from streamer.broker.redis_schema import BROADCAST
from streamer.operations.embedded import ValkeyServer
from tests.support.apps import circle, eventually
from tests.support.peers import Peer
from tests.support.proxy import Proxy
from tests.support.sentinels import Sentinels

HERE = (52.2300, 21.0100)
NEAR = (52.2310, 21.0120)


async def ask(server: ValkeyServer, *words: Any) -> Any:
    """A server's answer."""
    async with redis.asyncio.Redis.from_url(server.url, protocol=2) as client:
        return await client.execute_command(*words)  # type: ignore[no-untyped-call]


async def replicate(replica: ValkeyServer, primary: ValkeyServer) -> None:
    """Makes a server a replica, and waits until it has the primary's data."""
    await ask(replica, "REPLICAOF", "127.0.0.1", primary.port)

    async def linked() -> Any:
        return (await ask(replica, "INFO", "replication"))["master_link_status"] == "up"

    await eventually(linked, "a replica in step")


@pytest.fixture
async def pair(own_folder: Path) -> AsyncIterator[tuple[ValkeyServer, ValkeyServer]]:
    """A separate primary with its replica."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(ValkeyServer(own_folder.with_name(f"{own_folder.name}_{number}")))
            for number in range(2)
        ]
        for server in servers:
            await ask(server, "CONFIG", "SET", "hz", "10", "repl-diskless-sync-delay", "0")
        await replicate(servers[1], servers[0])
        yield servers[0], servers[1]


@asynccontextmanager
async def two_processes(*urls: str) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two processes, each with its URL of Redis."""
    async with Peer(urls[0], "one") as one, Peer(urls[-1], "other") as other:
        yield one, other


async def agree(one: Peer, other: Peer) -> None:
    """A vendor of either process moves, and customers of both see both."""
    looks = [await peer.watch(area=circle(*HERE, 5_000)) for peer in (one, other)]
    one.ping("truck", NEAR)
    other.ping("cart", NEAR)
    for look in looks:
        await look.sees({"truck": NEAR, "cart": NEAR})
        look.close()


async def test_a_primary_demoted_with_its_sessions_kept(pair: tuple[ValkeyServer, ValkeyServer]) -> None:
    """A load balancer that keeps sessions leaves the server on a replica; only the server can close the connection."""
    old, new = pair
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(old.url)) for _ in range(2)]
        one, other = await stack.enter_async_context(two_processes(*(proxy.url for proxy in proxies)))
        one.serve("truck", HERE)
        other.serve("cart", HERE)
        look = await other.watch(area=circle(*HERE, 5_000))
        await look.sees({"truck": HERE, "cart": HERE})
        await ask(new, "REPLICAOF", "NO", "ONE")
        await replicate(old, new)
        await eventually(lambda: not one.broker.up and not other.broker.up, "the refused writes noticed")
        assert "read only" in str(one.broker.cause)
        assert one.index.frozen, "others may be given up as silent"
        for proxy in proxies:
            proxy.lead_to(new.url)
        await one.joined()
        await other.joined()
        one.ping("truck", NEAR)
        await look.sees({"truck": NEAR, "cart": HERE})
        await agree(one, other)


async def test_a_full_redis(valkey_server: ValkeyServer) -> None:
    """Redis out of memory refuses every write: maps differ, so the process must be unready."""
    async with two_processes(valkey_server.url) as (one, other):
        one.serve("truck", HERE)
        other.serve("cart", HERE)
        with structlog.testing.capture_logs() as logs:
            await ask(valkey_server, "CONFIG", "SET", "maxmemory", "1mb")
            await eventually(lambda: not one.broker.up and not other.broker.up, "the refused writes noticed")
            assert "maxmemory" in str(one.broker.cause)
            await asyncio.sleep(2)
            assert not one.broker.up
            await ask(valkey_server, "CONFIG", "SET", "maxmemory", "0")
            nodes = [node for peer in (one, other) if (node := peer.broker.nodes.of(BROADCAST)) is not None]
            failures = [node.failures for node in nodes]
            await one.joined()
            await other.joined()
            # One more may have been in progress; with a probe per second every view is then up to date in time.
            assert all(node.failures <= before + 1 for node, before in zip(nodes, failures, strict=True))
        lines = [(log["event"].split(";")[0], log.get("failures", 1) > 0) for log in logs if "redis" in log["event"]]
        assert sorted(lines) == [("redis available", True)] * 2 + [("redis unavailable", True)] * 2, "one line each"
        await agree(one, other)


async def test_too_few_replicas(valkey_server: ValkeyServer) -> None:
    """A primary cut off from its replicas (`min-replicas-to-write`) refuses writes that would be lost."""
    async with two_processes(valkey_server.url) as (one, other):
        one.serve("truck", HERE)
        other.serve("cart", HERE)
        await ask(valkey_server, "CONFIG", "SET", "min-replicas-to-write", "1")
        await eventually(lambda: not one.broker.up, "the refused writes noticed")
        assert "NOREPLICAS" in str(one.broker.cause)
        await ask(valkey_server, "CONFIG", "SET", "min-replicas-to-write", "0")
        await one.joined()
        await other.joined()
        await agree(one, other)


@pytest.mark.timeout(60)
async def test_sentinels_make_the_replica_the_primary(
    pair: tuple[ValkeyServer, ValkeyServer], own_folder: Path
) -> None:
    """The primary's host is lost: three Sentinels promote the replica, and every process follows."""
    primary, replica = pair
    async with Sentinels(own_folder, primary.port) as sentinels, two_processes(sentinels.url) as (one, other):
        one.serve("truck", HERE)
        other.serve("cart", HERE)
        await agree(one, other)
        primary.kill()
        await eventually(lambda: not one.broker.up, "the loss noticed")
        await one.joined(30)
        await other.joined(30)
        assert b"master" in await ask(replica, "ROLE")
        await agree(one, other)


async def test_sentinels_that_know_no_such_primary(valkey_server: ValkeyServer, own_folder: Path) -> None:
    """A wrong service name is reported rather than waited for silently."""
    async with Sentinels(own_folder, valkey_server.port) as sentinels:
        peer = Peer(sentinels.url.replace("mymaster", "theirmaster"), "one")
        await peer.start(wait=False)
        try:
            await eventually(lambda: "theirmaster" in str(peer.broker.cause), "the service named")
        finally:
            await peer.stop()
