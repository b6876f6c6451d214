"""The Redis user with least privilege: a missing permission breaks the server, an extra one helps an intruder."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError

from streamer.broker.redis_acl import acl_rules
from streamer.operations.embedded import ValkeyServer
from tests.support.apps import circle, eventually
from tests.support.commands import run
from tests.support.peers import Peer

HERE = (52.2300, 21.0100)
NEAR = (52.2310, 21.0120)
AFAR = (53.4300, 14.5500)


async def test_processes_with_these_rights_do_all_they_do(serving_redis_url: str) -> None:
    """Publishing, reading, taking over, dropping, reaping: a refused command would be seen only in production."""
    times = {"offline_after": 500, "leave_after": 500}
    async with Peer(serving_redis_url, "one", **times) as one:
        async with Peer(serving_redis_url, "other", **times) as other:
            other.serve("truck", HERE)
            look = await one.watch(area=circle(*HERE, 5_000))
            await look.sees({"truck": HERE})
            listed = await one.watch(vendors=["truck"])
            other.ping("truck", AFAR)
            await listed.sees({"truck": AFAR})
            one.serve("truck", NEAR)
            await look.sees({"truck": NEAR})
            other.delete("truck")
            await look.sees({})
            assert await one.broker.once(["truck"], 10_000) == {}
            assert await one.broker.once(["truck"], 10_000)
        await eventually(lambda: "other" not in one.index.owners, "the other one forgotten")


async def test_nothing_else_is_allowed(serving_redis_url: str) -> None:
    """An attacker in the server must not read other data in that Redis, nor delete it."""
    async with redis.asyncio.Redis.from_url(serving_redis_url) as client:
        for words in (
            ("GET", "sessions"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("KEYS", "*"),
            ("PUBLISH", "v2:x", ""),
        ):
            with pytest.raises(NoPermissionError):
                await client.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped


async def test_redis_accepts_the_printed_rules(valkey_server: ValkeyServer, tmp_path: Path) -> None:
    """The documented command must work in Redis."""
    done = await run("redis", "acl", "--user", "venta", "--setuser", folder=tmp_path)
    assert done.status == 0
    command = done.out.strip().replace("PASSWORD", "secret")
    async with redis.asyncio.Redis.from_url(valkey_server.url) as client:
        await client.execute_command(*command.split())  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        assert "venta" in await client.acl_users()
    line = (await run("redis", "acl", folder=tmp_path)).out
    assert line.startswith(f"user streamer on >PASSWORD {acl_rules()}")
