"""CPU and memory of the server's processes, by kind: server, postgres, redis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import psutil

from loadtest.errors import WrongUse


class Status(NamedTuple):
    """One process: its kind, CPU seconds (of ended children too, where the system counts them) and resident bytes."""

    kind: str
    cpu: float
    resident: int


def kind(name: str) -> str:
    """Which part of the server a process of this name is."""
    if name.startswith(("postgres", "postmaster")):
        return "postgres"
    return "redis" if name.startswith(("redis", "valkey")) else "server"


class Processes:
    """The processes of a server: the given ones and all that descend from them, looked up anew each time."""

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
            except psutil.Error:  # it has just ended
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

    def cpu(self) -> dict[str, float]:
        """CPU seconds, user and system, since each process began; and `all`."""
        return self._sums([(status.kind, status.cpu) for status in self._all()])

    def resident(self) -> dict[str, float]:
        """Resident bytes; shared pages count in each process."""
        return self._sums([(status.kind, float(status.resident)) for status in self._all()])

    def look(self) -> tuple[dict[str, float], dict[str, float]]:
        """`cpu` and `resident` in one look."""
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
    """Whether there is a process with this id on this machine."""
    return bool(psutil.pid_exists(pid))


def parent(pid: int, of_kind: str) -> int | None:
    """The parent of a process if both run here and are of this kind."""
    try:
        process = psutil.Process(pid)
        above = process.parent()
        both = above is not None and kind(process.name()) == kind(above.name()) == of_kind
        return int(above.pid) if above is not None and both else None
    except psutil.Error:
        return None


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What each kind used between two looks."""
    return {name: round(value - before.get(name, 0.0), 3) for name, value in sorted(after.items())}


def per(seconds: dict[str, float], count: int) -> dict[str, float] | None:
    """CPU microseconds for one of `count`; None when nothing was done."""
    return {name: round(value / count * 1e6, 3) for name, value in seconds.items()} if count else None
