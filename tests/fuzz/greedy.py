"""`python -m tests.fuzz.greedy [--seconds 45]`: 40 clients at their most expensive beside one that asks for little.

A server process with a PostgreSQL and a Valkey of its own, and 300 vendors that ping once a second. One customer
watches one more vendor; how late its updates come is measured without and with 40 clients who stay within all limits:
each keeps 32 zigzag polygons of 199 vertices over the vendors and moves them all the time, eight read over HTTP as
well. Crowd, greedy clients and the measurement are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any

import aiohttp
import orjson
import psutil

from streamer.accounts.tokens import make_token
from streamer.operations.embedded import PostgresServer, ValkeyServer
from streamer.storage import migrate, seed
from streamer.storage.seed import SeededVendor
from tests.support.apps import SECRET, circle
from tests.support.process import ServerProcess

VENDORS = 300
CLIENTS = 40
WATCHES = 32
SOUTH, WEST, SIZE = 52.0, 21.0, 1.2
"""The vendors are in this square of degrees, and the polygons cover it."""
EVERY = 0.02
"""Seconds between two positions that are timed."""
WARM_UP = 20.0
"""Seconds in which everybody connects and the greedy use up what they may use at once."""


def zigzag(number: int) -> dict[str, Any]:
    """A polygon of 199 corners on the diagonal of the square, another one for each number."""
    shift = number % 1000 * 1e-5
    along = [k * 0.003 for k in range(199)]
    return {
        "polygon": [
            [WEST + x + k % 2 * SIZE / 2, SOUTH + x + (1 - k % 2) * SIZE / 2 + shift] for k, x in enumerate(along)
        ]
    }


def headers(clerk_id: str) -> dict[str, str]:
    """The token of a user."""
    return {"Authorization": f"Bearer {make_token(SECRET, clerk_id, 7200)}"}


async def crowd(url: str, clerk_ids: list[str]) -> None:
    """Vendors that ping once a second."""

    async def vendor(session: aiohttp.ClientSession, number: int, clerk_id: str) -> None:
        random = Random(number)
        await asyncio.sleep(random.random())
        async with session.ws_connect(f"{url}/v1/vendor", headers=headers(clerk_id)) as socket:
            lat, long = SOUTH + random.random() * SIZE, WEST + random.random() * SIZE
            while not socket.closed:
                lat, long = lat + random.uniform(-1e-4, 1e-4), long + random.uniform(-1e-4, 1e-4)
                await socket.send_bytes(orjson.dumps({"lat": lat, "long": long}))
                await asyncio.sleep(1)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(vendor(session, number, id) for number, id in enumerate(clerk_ids)))


async def greed(url: str, clerk_ids: list[str]) -> None:
    """Clients that use as much as they may; they end with the process. Their errors are counted at its end."""
    heard: dict[str, int] = {}

    async def listen(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if isinstance(message.data, str) and message.data.startswith('{"type":"error"'):
                code = orjson.loads(message.data)["code"]
                heard[code] = heard.get(code, 0) + 1
        heard["closed"] = heard.get("closed", 0) + 1

    async def client(session: aiohttp.ClientSession, number: int, clerk_id: str) -> None:
        async with session.ws_connect(f"{url}/v1/watch", headers=headers(clerk_id), max_msg_size=0) as socket:
            listening = asyncio.create_task(listen(socket))
            for move in range(1_000_000):
                area = zigzag(number * 1000 + move)
                await socket.send_bytes(orjson.dumps({"type": "watch", "id": str(move % WATCHES), "area": area}))
                await asyncio.sleep(0 if move < WATCHES else 0.1)
            await listening

    async def reader(session: aiohttp.ClientSession, clerk_id: str) -> None:
        while True:
            with suppress(aiohttp.ClientError):
                path = f"nearby?lat={SOUTH + SIZE / 2}&long={WEST + SIZE / 2}&radius=100000&limit=1000"
                async with session.get(f"{url}/v1/vendors/{path}", headers=headers(clerk_id)) as answer:
                    await answer.read()
            await asyncio.sleep(0.05)

    async def report() -> None:
        while True:
            await asyncio.sleep(5)
            print(orjson.dumps(heard).decode(), flush=True)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(
            report(),
            *(client(session, number, id) for number, id in enumerate(clerk_ids)),
            *(reader(session, id) for id in clerk_ids[:8]),
        )


async def delays(url: str, clerk_id: str, vendor_id: str, seconds: float) -> list[float]:
    """How late each position of a vendor came to a customer, in seconds."""
    sent: dict[int, float] = {}
    took: list[float] = []
    async with aiohttp.ClientSession() as session, AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(session.ws_connect(f"{url}/v1/vendor", headers=headers(clerk_id)))
        customer = await stack.enter_async_context(session.ws_connect(f"{url}/v1/watch"))

        async def listen() -> None:
            async for message in customer:
                now, update = time.perf_counter(), orjson.loads(message.data)
                for fix in update.get("moved", ()):
                    if fix["vendorId"] == vendor_id:
                        took.append(now - sent.pop(fix["timestamp"], now))
                assert update["type"] != "error", update

        listening = asyncio.create_task(listen())
        watched = circle(SOUTH + SIZE / 2, WEST + SIZE / 2, 2000)
        await customer.send_bytes(orjson.dumps({"type": "watch", "id": "w", "area": watched}))
        until, step = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            step += 1
            stamp = time.time_ns() // 1_000_000
            sent[stamp] = time.perf_counter()
            place = {"lat": SOUTH + SIZE / 2 + step % 10 * 1e-4, "long": WEST + SIZE / 2, "timestamp": stamp}
            await vendor.send_bytes(orjson.dumps(place))
            await asyncio.sleep(EVERY)
        await asyncio.sleep(1)
        assert not listening.done(), "the customer was cut off"
        listening.cancel()
    return took


def end(process: asyncio.subprocess.Process) -> None:
    """Kill one that still runs."""
    if process.returncode is None:
        process.kill()


async def part(name: str, url: str, vendors: list[SeededVendor]) -> asyncio.subprocess.Process:
    """Start one of the other parts as a process."""
    ids = ",".join(vendor.clerk_id for vendor in vendors)
    arguments = ("-m", "tests.fuzz.greedy", "--part", name, "--url", url, "--users", ids)
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)


async def measure(seconds: float, folder: Path) -> bool:
    """The whole of it; returns whether everybody was served and nothing died."""
    async with PostgresServer(folder, durable=False) as postgres, ValkeyServer(folder) as valkey:
        await migrate.upgrade(postgres.url)
        vendors = await seed.seed(postgres.url, 1 + VENDORS + CLIENTS)
        one, moving, greedy = vendors[0], vendors[1 : 1 + VENDORS], vendors[1 + VENDORS :]
        log = folder / "server.log"
        async with ServerProcess(postgres.url, valkey.url, log=log) as server, AsyncExitStack() as stack:
            process = psutil.Process(server.pid)
            figures: dict[str, tuple[float, float, float]] = {}
            for name, users in (("crowd", moving), ("greed", greedy)):
                running = await part(name, server.url, users)
                stack.callback(end, running)
                await asyncio.sleep(WARM_UP)
                cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
                took = await delays(server.url, one.clerk_id, one.vendor_id, seconds)
                share = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
                cuts = quantiles(took, n=100)
                figures[name] = cuts[49] * 1000, cuts[98] * 1000, share
                print(f"{name}: {len(took)} updates, p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms,"
                      f" {share * 100:.0f} % of a core")  # fmt: skip
            assert running.stdout is not None
            end(running)
            told = (await running.stdout.read()).decode().split("\n")
            print(f"the greedy were told {told[-2] if len(told) > 1 else 'nothing'}")
            print(f"p99 times {figures['greed'][1] / figures['crowd'][1]:.2f}")
            served = server.status is None
        text = log.read_text(errors="replace")
        return served and "Traceback" not in text


def main() -> int:
    """Exit status 1 when the server died, failed, or cut off the one that asks for little."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.greedy", description=__doc__)
    parser.add_argument("--seconds", type=float, default=45.0, help="of each of the two measurements")
    for hidden in ("--part", "--url", "--users"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part is not None:
        asyncio.run((crowd if given.part == "crowd" else greed)(given.url, given.users.split(",")))
        return 0
    with tempfile.TemporaryDirectory(prefix="greedy-") as folder:
        Path(folder).chmod(0o711)
        return 0 if asyncio.run(measure(given.seconds, Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
