"""What the server uses: by its processes when they run here, else by what it says of itself at `/metrics`."""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

import aiohttp

from loadtest.clients.target import Target
from loadtest.measure.process import Processes

TIMEOUT = 5.0
CPU = "process_cpu_seconds_total"
RESIDENT = "process_resident_memory_bytes"
SAMPLE = re.compile(rf"^({CPU}|{RESIDENT})(?:\{{[^}}]*\}})?\s+(\S+)", re.MULTILINE)

Look = tuple[dict[str, float], dict[str, float]]


class Meter(Protocol):
    """Looks at CPU seconds and resident bytes, by kind of process and as `all`; None when it can't just now."""

    source: str

    async def look(self) -> Look | None: ...


class ProcessMeter:
    """The server's processes on this machine."""

    source = "processes"

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def look(self) -> Look | None:
        return await asyncio.to_thread(self._processes.look)


class MetricsMeter:
    """What `/metrics` says: the server itself, without PostgreSQL and Redis; of several workers their sum."""

    source = "metrics"

    def __init__(self, target: Target) -> None:
        self._url = f"{'https' if target.tls else 'http'}://{target.authority}/metrics"
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT)

    async def look(self) -> Look | None:
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.get(self._url, allow_redirects=False) as answer,
            ):
                return parse(await answer.text(errors="replace")) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


def parse(text: str) -> Look | None:
    """CPU and memory in the Prometheus text format; None when they are not in it."""
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


async def meter(target: Target, processes: Processes | None) -> Meter | None:
    """The best there is: processes, else `/metrics`, else nothing."""
    if processes is not None:
        return ProcessMeter(processes)
    found = MetricsMeter(target)
    return found if await found.look() is not None else None
