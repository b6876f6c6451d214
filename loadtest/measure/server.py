"""External measurements of the server: readiness, clock, CPU and memory; and the machine of the run."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import orjson
import psutil

from loadtest import RunFailed, WrongUse
from loadtest.clients.target import Identity, Target, mint
from loadtest.clients.websocket import connect
from venta_client.errors import ClientError

TIMEOUT = 5.0
WITHIN = 10.0
TRIES = 7
MAX_QUOTED = 500
PACKAGES = ("venta-streamer", "aiohttp", "asyncpg", "orjson", "uvloop")
CPU = "process_cpu_seconds_total"
RESIDENT = "process_resident_memory_bytes"
SAMPLE = re.compile(rf"^({CPU}|{RESIDENT})(?:\{{[^}}]*\}})?\s+(\S+)", re.MULTILINE)

Look = tuple[dict[str, float], dict[str, float]]


def kind(name: str) -> str:
    """Returns the kind of a process by its name: postgres, redis or server."""
    if name.startswith(("postgres", "postmaster")):
        return "postgres"
    return "redis" if name.startswith(("redis", "valkey")) else "server"


class Processes:
    """The server's processes on this machine: the given ones and their descendants, looked up on each call."""

    source = "processes"

    def __init__(self, roots: Iterable[int]) -> None:
        self.roots = frozenset(roots)
        for root in sorted(self.roots):
            if not psutil.pid_exists(root):
                raise WrongUse(f"there is no process {root} on this machine; give the server's process id as --pid")

    async def look(self) -> Look:
        return await asyncio.to_thread(self.used)

    def used(self) -> Look:
        """Returns CPU seconds since each process began, and resident bytes, by kind and as `all`.

        The CPU seconds of children that have ended are included, if the system counts them.
        """
        found: dict[int, psutil.Process] = {}
        for root in self.roots:
            with suppress(psutil.Error):  # it ended meanwhile
                above = psutil.Process(root)
                found |= {process.pid: process for process in (above, *above.children(recursive=True))}
        cpu, resident = defaultdict[str, float](float), defaultdict[str, float](float)
        for process in found.values():
            with suppress(psutil.Error), process.oneshot():
                name, seconds, size = kind(process.name()), sum(process.cpu_times()[:4]), process.memory_info().rss
                for part in (name, "all"):
                    cpu[part] += seconds
                    resident[part] += size
        return cpu, resident


def parent(pid: int, of_kind: str) -> int | None:
    """Returns the parent of a process if both run here and are of this kind."""
    try:
        process = psutil.Process(pid)
        above = process.parent()
        both = above is not None and kind(process.name()) == kind(above.name()) == of_kind
        return int(above.pid) if above is not None and both else None
    except psutil.Error:
        return None


class MetricsMeter:
    """Usage from `/metrics`: only the server, without PostgreSQL and Redis; the sum of its workers."""

    source = "metrics"

    def __init__(self, target: Target) -> None:
        self._url = f"{target.url}/metrics"
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT)

    async def look(self) -> Look | None:
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.get(self._url, allow_redirects=False) as answer,
            ):
                return parse_metrics(await answer.text(errors="replace")) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


Meter = Processes | MetricsMeter
"""Its `look` returns CPU seconds and resident bytes, by kind of process and as `all`; None if that fails now."""


def parse_metrics(text: str) -> Look | None:
    """Returns CPU and memory from the Prometheus text format; None if they are missing."""
    sums: dict[str, float] = {}
    for name, value in SAMPLE.findall(text):
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            return None
    if CPU not in sums:
        return None
    cpu, resident = sums[CPU], sums.get(RESIDENT, 0.0)
    return {"server": cpu, "all": cpu}, {"server": resident, "all": resident}


class Offset(NamedTuple):
    """The server's clock minus this machine's, in ms, and its maximum error."""

    ms: float
    error_ms: float


async def offset(target: Target, identity: Identity, secret: str) -> Offset:
    """Returns the offset by the fastest of several hellos, which is the most exact. Zero on the same machine."""
    if target.loopback:
        return Offset(0.0, 0.0)
    try:
        return min([await hello(target, identity, secret) for _ in range(TRIES)], key=lambda found: found.error_ms)
    except (OSError, TimeoutError, ClientError) as failed:
        raise RunFailed(f"the server's clock can't be read: {failed}; is the server running?") from None


async def hello(target: Target, identity: Identity, secret: str) -> Offset:
    """Compares one connection's `hello.time` with the time halfway between the request and its arrival."""
    times: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()

    def received(message: bytes) -> None:
        decoded = orjson.loads(message)
        if decoded.get("type") == "hello" and not times.done():
            times.set_result((int(decoded["time"]), time.time() * 1000))

    asked = time.time() * 1000
    token = mint(identity.clerk_id, secret, time.time())
    socket = await connect(target, f"/v1/vendor?vendorId={quote(identity.vendor_id, safe='')}", received, token=token)
    try:
        server, now = await asyncio.wait_for(times, WITHIN)
    finally:
        socket.close()
        await asyncio.wait({socket.closed}, timeout=WITHIN)
    return Offset(server - (asked + now) / 2, (now - asked) / 2)


async def unready(target: Target) -> str | None:
    """Returns the causes in `/readyz`, None if the server is ready; raises RunFailed if it does not answer."""
    url = f"{target.url}/readyz"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WITHIN)) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status == 200:
                return None
            return f"{answer.status}: {(await answer.text(errors='replace'))[:MAX_QUOTED].strip()}"
    except (aiohttp.ClientError, OSError, TimeoutError) as failed:
        raise RunFailed(f"{url} does not answer: {failed!r}; is the server running?") from None


def environment() -> dict[str, Any]:
    """Returns a description of this machine and this checkout, without what can't be determined."""
    found: dict[str, Any] = {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "revision": revision(),
        "packages": {},
    }
    for name in PACKAGES:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            continue
    return {name: value for name, value in found.items() if value is not None}


def cpu() -> str | None:
    """Returns the model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def revision() -> str | None:
    """Returns the git revision of this code, with a + when files have changed since."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() or None
