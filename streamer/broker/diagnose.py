"""A single look at Redis for `streamer doctor`: reachable, writable, its version and its clock."""

from __future__ import annotations

from typing import NamedTuple

from redis.exceptions import RedisError

from streamer.broker.redis_address import RedisAddress, describe
from streamer.broker.redis_compat import reset
from streamer.errors import Unavailable

TIMEOUT = 3.0
"""Seconds for each answer."""
KEY = "venta:doctor"


class RedisState(NamedTuple):
    """The state that a Redis reports; `clock` is epoch seconds."""

    version: str
    clock: float


async def look_at(url: str) -> RedisState:
    """Connects, writes one key that expires within a second, and reads version and clock; raises Unavailable."""
    address = RedisAddress(url, TIMEOUT)
    try:
        connection = await address.connect()
        try:
            answers = []
            for command in (("TIME",), ("INFO", "server"), ("SET", KEY, "1", "PX", "1000")):
                await connection.send_command(*command)
                answers.append(await connection.read_response(timeout=TIMEOUT))
        finally:
            reset(connection)
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(describe(error)) from error
    finally:
        await address.close()
    (seconds, microseconds), info, _ = answers
    fields = dict(line.partition(":")[::2] for line in bytes(info).decode().splitlines())
    version = fields.get("valkey_version") or fields.get("redis_version", "unknown")
    return RedisState(version, int(seconds) + int(microseconds) / 1e6)
