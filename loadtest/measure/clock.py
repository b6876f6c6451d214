"""The server's clock, without which a delay between two machines means nothing; and whether the server is ready."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple
from urllib.parse import quote

import aiohttp
import orjson

from loadtest.clients.identity import Identity, mint
from loadtest.clients.target import Target
from loadtest.clients.websocket import connect
from loadtest.errors import RunFailed
from venta_client.errors import ClientError

TRIES = 7
MAX_QUOTED = 500
WITHIN = 10.0


class Offset(NamedTuple):
    """The server's clock less this machine's, in ms, and by how much that may be wrong."""

    ms: float
    error_ms: float


async def offset(target: Target, identity: Identity, secret: str) -> Offset:
    """Returns the offset by the quickest of some hellos, which is the most exact. Zero on one machine."""
    if target.loopback:
        return Offset(0.0, 0.0)
    try:
        return min([await hello(target, identity, secret) for _ in range(TRIES)], key=lambda found: found.error_ms)
    except (OSError, TimeoutError, ClientError) as failed:
        raise RunFailed(f"the server's clock can't be read: {failed}; is the server up?") from None


async def hello(target: Target, identity: Identity, secret: str) -> Offset:
    """Compares one connection's `hello.time` with the time halfway between asking and receiving it."""
    heard: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()

    def received(message: bytes) -> None:
        decoded = orjson.loads(message)
        if decoded.get("type") == "hello" and not heard.done():
            heard.set_result((int(decoded["time"]), time.time() * 1000))

    asked = time.time() * 1000
    token = mint(identity.clerk_id, secret, time.time())
    socket = await connect(target, f"/v1/vendor?vendorId={quote(identity.vendor_id, safe='')}", received, token=token)
    try:
        server, now = await asyncio.wait_for(heard, WITHIN)
    finally:
        socket.close()
        await asyncio.wait({socket.closed}, timeout=WITHIN)
    return Offset(server - (asked + now) / 2, (now - asked) / 2)


async def unready(target: Target) -> str | None:
    """Returns what `/readyz` complains of, None when the server is ready; raises RunFailed when it does not answer."""
    url = f"{'https' if target.tls else 'http'}://{target.authority}/readyz"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WITHIN)) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status == 200:
                return None
            return f"{answer.status}: {(await answer.text(errors='replace'))[:MAX_QUOTED].strip()}"
    except (aiohttp.ClientError, OSError, TimeoutError) as failed:
        raise RunFailed(f"{url} does not answer: {failed!r}; is the server up?") from None
