"""CPU and memory of the server's processes, from /proc (Linux), by kind: server, postgres, redis."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from loadtest.errors import WrongUse

PROC = Path("/proc")


class Status(NamedTuple):
    """One process: its parent, its kind, CPU seconds (of reaped children too) and resident bytes."""

    parent: int
    kind: str
    cpu: float
    resident: int


def statuses() -> dict[int, Status]:
    """Every process of the machine that can be seen."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    found = {}
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            head, _, tail = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")
        except OSError:  # it has just ended
            continue
        fields = tail.split()
        cpu = sum(int(field) for field in fields[11:15]) / tick
        found[int(folder.name)] = Status(int(fields[1]), kind(head.partition("(")[2]), cpu, int(fields[21]) * page)
    return found


def kind(name: str) -> str:
    """Which part of the server a process of this name is."""
    if name.startswith(("postgres", "postmaster")):
        return "postgres"
    return "redis" if name.startswith(("redis", "valkey")) else "server"


class Processes:
    """The processes of a server: the given ones and all that descend from them, looked up anew each time."""

    def __init__(self, roots: Iterable[int]) -> None:
        self.roots = frozenset(roots)
        missing = sorted(self.roots - statuses().keys()) if PROC.is_dir() else sorted(self.roots)
        if missing:
            raise WrongUse(f"there is no process {missing[0]} in {PROC}; give the server's own id as --pid")

    def _all(self) -> list[Status]:
        everyone = statuses()
        children: dict[int, list[int]] = {}
        for pid, status in everyone.items():
            children.setdefault(status.parent, []).append(pid)
        found, todo = set[int](), [pid for pid in self.roots if pid in everyone]
        while todo:
            pid = todo.pop()
            if pid not in found:
                found.add(pid)
                todo += children.get(pid, [])
        return [everyone[pid] for pid in found]

    def cpu(self) -> dict[str, float]:
        """CPU seconds, user and system, since each process began; and `all`."""
        return self._sums([(status.kind, status.cpu) for status in self._all()])

    def resident(self) -> dict[str, float]:
        """Resident bytes; shared pages count in each process."""
        return self._sums([(status.kind, float(status.resident)) for status in self._all()])

    @staticmethod
    def _sums(values: list[tuple[str, float]]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for name, value in values:
            sums[name] = sums.get(name, 0.0) + value
            sums["all"] = sums.get("all", 0.0) + value
        return sums


def parent(pid: int, of_kind: str) -> int | None:
    """The parent of a process if both run here and are of this kind."""
    if not PROC.is_dir():
        return None
    everyone = statuses()
    own = everyone.get(pid)
    above = everyone.get(own.parent) if own is not None and own.kind == of_kind else None
    return own.parent if own is not None and above is not None and above.kind == of_kind else None


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What each kind used between two looks."""
    return {name: round(value - before.get(name, 0.0), 3) for name, value in sorted(after.items())}


def per(seconds: dict[str, float], count: int) -> dict[str, float] | None:
    """CPU microseconds for one of `count`; None when nothing was done."""
    return {name: round(value / count * 1e6, 3) for name, value in seconds.items()} if count else None
