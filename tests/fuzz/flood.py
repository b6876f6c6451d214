"""`python -m tests.fuzz.flood [--messages 1000000] [--seed 1]`: generated messages at a running server.

A server process with a PostgreSQL and a Valkey of its own. Vendor and customer sockets send what is nearly right, wrong
and no JSON at all, HTTP requests in between. Judged from outside: every answer is one of the contract with a known
code, no 500, no traceback in the log, memory that does not grow, and a good vendor seen by a good customer all along.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil

from streamer.accounts.tokens import make_token
from streamer.errors import CloseCode, ErrorCode
from streamer.operations.embedded import PostgresServer, ValkeyServer
from streamer.storage import migrate
from streamer.storage import seed as seeds
from streamer.storage.seed import SeededVendor
from tests.fuzz.mutations import ODD, TOKEN
from tests.fuzz.targets import SEEDS
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually
from tests.support.process import ServerProcess

LAT, LONG = 10.0, 10.0
CONNECTIONS = 8
HTTP_EVERY = 100
MOST_GROWTH = 40 << 20
"""Bytes that the server may hold more at the end than after the first fifth."""
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 90, -90, 180, -180, 90.0000001, 1e308, -1e-320, 2**53, 2**63, -(2**63), 0.1),
    *("", "x", "\0", "w" * 200, "52.2", "2024-11-24T17:00:00Z", "ping", "watch", [], {}, [[]], [1, 2], {"lat": 1}),
    *({"lat": 52.2, "long": 21.0}, [[0, 0], [0, 0.1], [0.1, 0.1]], ["a"] * 300, [0] * 600, 1732467600000, 4e12),
)
KINDS = frozenset({"hello", "ack", "reject", "error", "snapshot", "update", "unwatched"})
CODES = frozenset(code.value for code in ErrorCode) - {ErrorCode.INTERNAL.value}
CLOSES = frozenset(int(code) for code in CloseCode) - {CloseCode.INTERNAL}


@dataclass
class Outcome:
    """What came back, and what should not have."""

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    closes: Counter[int] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rss: tuple[int, int] = (0, 0)

    def fault(self, what: str) -> None:
        """Keep the first of what is wrong."""
        if len(self.faults) < 20:
            self.faults.append(what)

    def __str__(self) -> str:
        lines = [
            f"{self.sent} messages in {self.seconds:.0f} s ({self.sent / max(self.seconds, 1e-9):.0f} a second)",
            f"answers {dict(self.answers.most_common())}",
            f"closes {dict(self.closes.most_common())}; HTTP {dict(self.statuses.most_common())}",
            f"memory {self.rss[0] / 2**20:.0f} MiB after a fifth, {self.rss[1] / 2**20:.0f} MiB at the end",
            *(f"FAULT {fault}" for fault in self.faults),
        ]
        return "\n".join(lines)


def is_container(line: bytes) -> bool:
    """Whether this is a JSON object or array."""
    try:
        return type(orjson.loads(line)) in (dict, list)
    except orjson.JSONDecodeError:
        return False


class Nonsense:
    """Messages for one kind of socket, from one seed: most of them JSON with something in it that does not belong."""

    def __init__(self, kind: str, seed: int) -> None:
        self._random = random.Random(f"{kind} {seed}")
        # Without seq: one that was used before is refused, and the rest of the message not looked at.
        lines = [re.sub(rb'"seq":\d+,', b"", line) for seed in SEEDS[kind] for line in seed.split(b"\n")]
        # A bad token ends the connection, and with it what was sent behind it: seldom.
        self._whole = [line for line in lines if b'"auth"' not in line]
        self._ending = [line for line in lines if b'"auth"' in line] or self._whole
        self._parts = [TOKEN.findall(seed) for seed in self._whole]
        self._objects = [line for line in self._whole if is_container(line)]

    def __call__(self) -> bytes:
        """The next one."""
        random = self._random
        choice = random.random()
        if choice < 0.001:
            return random.choice(self._ending)
        if choice < 0.15:
            return random.choice(self._whole)
        if choice < 0.6:
            return self._odd_value(orjson.loads(random.choice(self._objects)))
        if choice < 0.7:
            return random.randbytes(random.randrange(60))
        if choice < 0.8:
            a, b = random.choice(self._whole), random.choice(self._whole)
            return a[: random.randrange(len(a) + 1)] + b[random.randrange(len(b) + 1) :]
        parts = list(random.choice(self._parts)) or [b""]
        for _ in range(random.randrange(1, 4)):
            parts[random.randrange(len(parts))] = random.choice(ODD)
        return b"".join(parts)

    def _odd_value(self, message: Any) -> bytes:
        """A message of which one member, however deep, is replaced, left out or added."""
        random = self._random
        inside = message
        while True:
            keys: list[Any] = list(inside) if type(inside) is dict else list(range(len(inside)))
            if not keys:
                break
            key = random.choice(keys)
            if type(inside[key]) in (dict, list) and random.random() < 0.8:
                inside = inside[key]
                continue
            if random.random() < 0.2:
                del inside[key]
            else:
                inside[key] = random.choice(ODD_VALUES)
            break
        return orjson.dumps(message)


async def flood(
    url: str, pid: int, vendors: list[SeededVendor], good: SeededVendor, messages: int, seed: int
) -> Outcome:
    """Sends this many messages; `vendors` send invalid ones, `good` must be served without errors."""
    outcome = Outcome()
    started = time.monotonic()
    process = psutil.Process(pid)
    async with aiohttp.ClientSession() as session, AsyncExitStack() as stack:
        vendor = await stack.enter_async_context(VendorApp(url, good.clerk_id))
        customer = await stack.enter_async_context(CustomerApp(url))
        await customer.watch("w", circle(LAT, LONG, 1000))

        async def serve_well() -> None:
            number = 0
            while True:
                number += 1
                lat = LAT + (number % 50) * 1e-5
                await vendor.ping(lat, LONG)
                await customer.sees("w", {good.vendor_id: (lat, LONG)}, within=60)
                await asyncio.sleep(0.2)

        async def remember() -> None:
            await eventually(lambda: outcome.sent >= messages / 5, "the first fifth", within=3600)
            outcome.rss = (process.memory_info().rss, 0)

        well = asyncio.create_task(serve_well())
        fifth = asyncio.create_task(remember())
        share = messages // CONNECTIONS
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(CONNECTIONS):
                    kind = "vendor" if number % 2 == 0 else "watch"
                    one = vendors[number % len(vendors)]
                    group.create_task(attack(session, url, kind, one, share, seed + number, outcome))
            if well.done():
                outcome.fault(f"the good ones were not served: {well.exception()!r}")
            await fifth
        finally:
            for task in (well, fifth):
                task.cancel()
            await asyncio.gather(well, fifth, return_exceptions=True)
        async with session.get(f"{url}/readyz") as response:
            if response.status != 200:
                outcome.fault(f"not ready at the end: {await response.text()}")
    outcome.rss = (outcome.rss[0], process.memory_info().rss)
    if outcome.rss[1] - outcome.rss[0] > MOST_GROWTH:
        outcome.fault(f"memory grew by {(outcome.rss[1] - outcome.rss[0]) >> 20} MiB")
    if outcome.sent < messages - CONNECTIONS:
        outcome.fault(f"only {outcome.sent} were sent")
    outcome.seconds = time.monotonic() - started
    return outcome


async def attack(
    session: aiohttp.ClientSession, url: str, kind: str, vendor: SeededVendor, count: int, seed: int, outcome: Outcome
) -> None:
    """One socket's messages, on as many connections as it takes."""
    nonsense, web = Nonsense(kind, seed), Nonsense("http", seed)
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 7200)}"}
    left = count
    while left > 0:
        async with session.ws_connect(f"{url}/v1/{kind}", headers=headers, max_msg_size=0) as socket:
            reading = asyncio.create_task(read(socket, outcome))
            with suppress(ConnectionError):
                while left > 0 and not reading.done():
                    await socket.send_bytes(nonsense())
                    left -= 1
                    outcome.sent += 1
                    if left % HTTP_EVERY == 0:
                        await request(session, url, vendor, headers, web(), outcome)
            await asyncio.wait({reading}, timeout=2)
            if reading.done():
                code = reading.result()
                outcome.closes[code or 0] += 1
                if code not in CLOSES:
                    outcome.fault(f"closed with {code}")
            else:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                await socket.close()


async def read(socket: aiohttp.ClientWebSocketResponse, outcome: Outcome) -> int | None:
    """Look at each answer until the end of the connection; gives its code."""
    async for message in socket:
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            continue
        answer = orjson.loads(message.data)
        kind = answer.get("type")
        if kind in ("error", "reject"):
            if answer.get("code") not in CODES or not answer.get("message"):
                outcome.fault(f"an answer of no known code: {message.data!r:.300}")
            kind = answer.get("code")
        elif kind not in KINDS:
            outcome.fault(f"an answer of no known type: {message.data!r:.300}")
        outcome.answers[str(kind)] += 1
    return socket.close_code


async def request(
    session: aiohttp.ClientSession,
    url: str,
    vendor: SeededVendor,
    headers: dict[str, str],
    data: bytes,
    outcome: Outcome,
) -> None:
    """One HTTP request with nonsense in its body or query."""
    path = random.Random(data).choice(
        (f"/v1/vendors/{vendor.vendor_id}/locations", "/v1/owntracks", "/v1/osmand", "/v1/vendors/nearby?lat=1&long=2&")
    )
    if path.endswith("&"):
        query = "".join(f"%{byte:02x}" if chr(byte) not in "=&" else chr(byte) for byte in data[:200])
        asking = session.get(f"{url}{path}{query}", headers=headers)
    else:
        asking = session.post(url + path, headers=headers, data=data)
    async with asking as response:
        outcome.statuses[response.status] += 1
        if response.status >= 500:
            outcome.fault(f"{response.status} for {path} {data!r:.200}")
        elif response.status >= 400 and (await response.json(content_type=None)).get("code") not in CODES:
            outcome.fault(f"a refusal without a code for {path} {data!r:.200}")


async def against_own_server(messages: int, seed: int, folder: Path) -> Outcome:
    """The whole of it, with everything started here and stopped afterwards."""
    log = folder / "server.log"
    async with PostgresServer(folder, durable=False) as postgres, ValkeyServer(folder) as valkey:
        await migrate.upgrade(postgres.url)
        vendors = await seeds.seed(postgres.url, CONNECTIONS + 1)
        patient = {"max_bad_messages": 10_000, "vendor_messages": 1e6, "watch_messages": 1e6, "admission_rate": 1e5}
        async with ServerProcess(postgres.url, valkey.url, log=log, **patient) as server:
            outcome = await flood(server.url, server.pid, vendors[1:], vendors[0], messages, seed)
    told = log.read_text(errors="replace")
    for sign in ("Traceback", '"level": "error"', "never retrieved"):
        if sign in told:
            outcome.fault(f"the server's log has {sign!r}: {told[max(0, told.index(sign) - 300) :][:1500]}")
    return outcome


def main() -> int:
    """Exit status 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.flood", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flood-") as folder:
        Path(folder).chmod(0o711)
        outcome = asyncio.run(against_own_server(given.messages, given.seed, Path(folder)))
    print(outcome)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
