"""How far this machine's clock is from the server's: with two machines a delay would be mostly that."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple
from urllib.parse import quote

import orjson

from loadtest.clients.identity import Identity
from loadtest.clients.target import Target
from loadtest.clients.tokens import mint
from loadtest.clients.websocket import connect
from loadtest.errors import RunFailed
from venta_client.errors import ClientError

TRIES = 7
WITHIN = 10.0


class Offset(NamedTuple):
    """The server's clock less this machine's, in ms, and by how much that may be wrong."""

    ms: float
    error_ms: float


async def offset(target: Target, identity: Identity, secret: str) -> Offset:
    """Ask the server for its time in some greetings; the quickest answer is the most exact. Zero on one machine."""
    if target.loopback:
        return Offset(0.0, 0.0)
    try:
        return min([await greeting(target, identity, secret) for _ in range(TRIES)], key=lambda found: found.error_ms)
    except (OSError, TimeoutError, ClientError) as failed:
        raise RunFailed(f"the server's clock can't be asked for: {failed}; is the server up?") from None


async def greeting(target: Target, identity: Identity, secret: str) -> Offset:
    """One connection's `hello.time` against the time halfway between asking and hearing."""
    heard: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()

    def received(message: bytes) -> None:
        decoded = orjson.loads(message)
        if decoded.get("type") == "hello" and not heard.done():
            heard.set_result((int(decoded["time"]), time.time() * 1000))

    asked = time.time() * 1000
    token = mint(identity.clerk_id, secret, time.time())
    socket = await connect(target, f"/v1/vendor?vendorId={quote(identity.vendor_id, safe='')}", received, token=token)
    try:
        told, now = await asyncio.wait_for(heard, WITHIN)
    finally:
        socket.close()
        await asyncio.wait({socket.closed}, timeout=WITHIN)
    return Offset(told - (asked + now) / 2, (now - asked) / 2)
