"""Checks Redis once for `streamer doctor`: whether it is reachable and writable, its version and its clock."""

from __future__ import annotations

from typing import NamedTuple

from redis.exceptions import RedisError

from streamer.broker.redis_address import RedisAddress, describe
from streamer.broker.redis_connections import CONNECTION_ERRORS, RequestConnection
from streamer.errors import Unavailable

TIMEOUT = 3.0
"""Seconds; the timeout of each answer."""
KEY = "venta:doctor"


class RedisState(NamedTuple):
    """The state that a Redis reports; `clock` is epoch seconds."""

    version: str
    clock: float


async def look_at(url: str) -> RedisState:
    """Connects, writes one key that expires within a second, and reads version and clock; raises Unavailable."""
    address = RedisAddress(url, TIMEOUT)
    requests = RequestConnection(address.connect, TIMEOUT)
    try:
        answers = await requests.run([("TIME",), ("INFO", "server"), ("SET", KEY, "1", "PX", "1000")])
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
    except CONNECTION_ERRORS as error:
        raise Unavailable(describe(error)) from error
    finally:
        requests.cut()
        await address.close()
    (seconds, microseconds), info, _ = answers
    fields = dict(line.partition(":")[::2] for line in bytes(info).decode().splitlines())
    version = fields.get("valkey_version") or fields.get("redis_version", "unknown")
    return RedisState(version, int(seconds) + int(microseconds) / 1e6)
