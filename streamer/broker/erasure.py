"""Erases vendors from Redis: their states in cells, and their entries in the position stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from streamer.broker import redis_schema
from streamer.broker.redis_address import RedisAddress
from streamer.broker.redis_cluster import Nodes
from streamer.broker.redis_connections import Command
from streamer.broker.redis_node import Node
from streamer.errors import Unavailable
from streamer.supervisor import end

TIMEOUT = 5.0
WITHIN = 30.0
"""Seconds; all nodes of Redis must answer by then."""
PAGE = 1000
"""Stream entries read at a time."""


class _Ignore:
    """Ignores node events."""

    def on_message(self, channel: bytes, data: bytes) -> None: ...
    def on_subscribed(self, channel: bytes) -> None: ...
    def on_answering(self, node: Node) -> None: ...
    def on_subscription(self, node: Node, up: bool) -> None: ...
    def on_slots_moved(self) -> None: ...


async def erase_vendors(url: str, vendor_ids: Sequence[str], stream_key: str | None) -> int:
    """Removes vendors from Redis and the position stream, if any; returns the number of keys, fields and entries."""
    nodes = Nodes(RedisAddress(url, TIMEOUT), _Ignore(), timeout=TIMEOUT)
    keeping = asyncio.create_task(nodes.keep(), name="redis")
    try:
        async with asyncio.timeout(WITHIN):
            while not nodes.answers((stream_key or redis_schema.BROADCAST.decode()).encode()):
                if keeping.done():
                    keeping.result()
                await asyncio.sleep(0.05)
        removed = 0
        for vendor_id in vendor_ids:
            removed += await _erase_state(nodes, vendor_id)
        if stream_key is None:
            return removed
        return removed + await _erase_entries(nodes, {id.encode() for id in vendor_ids}, stream_key.encode())
    except TimeoutError:
        raise Unavailable(f"Redis does not answer: {nodes.cause}; the vendors are erased in PostgreSQL only") from None
    finally:
        await end([keeping])
        await nodes.close()


async def _erase_state(nodes: Nodes, vendor_id: str) -> int:
    place_key, once_key = redis_schema.place_key(vendor_id), redis_schema.once_key(vendor_id)
    (held,) = await _ask(nodes, Command(place_key, ("GET", place_key)))
    removed: int = 0
    if (place := redis_schema.parse_place(held)) is not None:
        key = redis_schema.positions_key(place.cell)
        fields = [part + vendor_id.encode() for part in (b"f", b"c", b"p", b"h")]
        removed += sum(map(int, await _ask(nodes, Command(key, ("HDEL", key, *fields)))))
    deleted = [Command(key, ("DEL", key)) for key in (place_key, once_key)]
    return removed + sum(map(int, await _ask(nodes, *deleted)))


async def _erase_entries(nodes: Nodes, vendor_ids: set[bytes], key: bytes) -> int:
    removed, start = 0, b"-"
    while True:
        (entries,) = await _ask(nodes, Command(key, ("XRANGE", key, start, "+", "COUNT", PAGE)))
        theirs = [id for id, fields in entries or () if vendor_ids & set(fields)]
        if theirs:
            removed += sum(await _ask(nodes, Command(key, ("XDEL", key, *theirs))))
        if not entries or len(entries) < PAGE:
            return removed
        start = b"(" + entries[-1][0]


async def _ask(nodes: Nodes, *commands: Command) -> list[Any]:
    answers = await nodes.run(commands)
    for answer in answers:
        if isinstance(answer, Exception):
            raise Unavailable(f"Redis refused to erase: {answer}; run the command again") from answer
    return answers
