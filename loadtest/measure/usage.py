"""CPU and memory of the server: of its processes when they run here, else what it reports at `/metrics`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import aiohttp
import psutil

from loadtest.clients.target import Target
from loadtest.errors import WrongUse

TIMEOUT = 5.0
CPU = "process_cpu_seconds_total"
RESIDENT = "process_resident_memory_bytes"
SAMPLE = re.compile(rf"^({CPU}|{RESIDENT})(?:\{{[^}}]*\}})?\s+(\S+)", re.MULTILINE)

Look = tuple[dict[str, float], dict[str, float]]


class Status(NamedTuple):
    """One process: its kind, CPU seconds (of ended children too, where the system counts them) and resident bytes."""

    kind: str
    cpu: float
    resident: int


def kind(name: str) -> str:
    """Returns the part of the server that a process of this name is: postgres, redis or server."""
    if name.startswith(("postgres", "postmaster")):
        return "postgres"
    return "redis" if name.startswith(("redis", "valkey")) else "server"


class Processes:
    """The processes of a server: the given ones and their descendants, looked up each time."""

    def __init__(self, roots: Iterable[int]) -> None:
        self.roots = frozenset(roots)
        for root in sorted(self.roots):
            if not psutil.pid_exists(root):
                raise WrongUse(f"there is no process {root} on this machine; give the server's own id as --pid")

    def _all(self) -> list[Status]:
        found: dict[int, psutil.Process] = {}
        for root in self.roots:
            try:
                above = psutil.Process(root)
                found |= {process.pid: process for process in (above, *above.children(recursive=True))}
            except psutil.Error:  # it ended meanwhile
                continue
        statuses = []
        for process in found.values():
            try:
                with process.oneshot():
                    times, resident = process.cpu_times(), process.memory_info().rss
                    statuses.append(Status(kind(process.name()), sum(times[:4]), resident))
            except psutil.Error:
                continue
        return statuses

    def look(self) -> Look:
        """Returns CPU seconds since each process began, and resident bytes, by kind and as `all`."""
        found = self._all()
        return (
            self._sums([(status.kind, status.cpu) for status in found]),
            self._sums([(status.kind, float(status.resident)) for status in found]),
        )

    @staticmethod
    def _sums(values: list[tuple[str, float]]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for name, value in values:
            sums[name] = sums.get(name, 0.0) + value
            sums["all"] = sums.get("all", 0.0) + value
        return sums


def runs_here(pid: int) -> bool:
    """Returns whether there is a process with this id on this machine."""
    return bool(psutil.pid_exists(pid))


def parent(pid: int, of_kind: str) -> int | None:
    """Returns the parent of a process if both run here and are of this kind."""
    try:
        process = psutil.Process(pid)
        above = process.parent()
        both = above is not None and kind(process.name()) == kind(above.name()) == of_kind
        return int(above.pid) if above is not None and both else None
    except psutil.Error:
        return None


class Meter(Protocol):
    """Returns CPU seconds and resident bytes, by kind of process and as `all`; None when that fails just now."""

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
    """What `/metrics` reports: the server alone, without PostgreSQL and Redis; the sum of several workers."""

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
    """Returns CPU and memory from the Prometheus text format; None when they are not in it."""
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
    """Returns the best meter there is: processes, else `/metrics`, else None."""
    if processes is not None:
        return ProcessMeter(processes)
    found = MetricsMeter(target)
    return found if await found.look() is not None else None
