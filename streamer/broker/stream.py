"""A Redis Stream of committed positions and of statuses, for other services.

Changes are merged per vendor and written once per interval, a position after its commit in PostgreSQL. While Redis is
down the newest change of each vendor is kept, and written once Redis is back. An entry of type `gap` means that entries
may be missing: after a process died with unwritten changes, and after Redis lost data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import structlog

from streamer.broker.redis_connections import Command
from streamer.errors import Unavailable
from streamer.ingest.position import Position

log = structlog.get_logger()

SLICE = 200
"""Commands sent together; the live path's commands run between two slices."""
HEARTBEAT_EVERY = 5.0
"""Seconds after which a process without changes writes a heartbeat."""
DEAD_AFTER = 30.0
"""Seconds without a heartbeat after which a process is considered dead, and another one writes a gap for it."""
CHECK_EVERY = 10.0
"""Seconds between two checks for dead processes."""
CLOSE_TIMEOUT = 3.0
MOST_KNOWN = 100_000
"""Vendors whose newest written timestamp is kept, so that a backlog is not written after a newer position."""

Run = Callable[[Sequence[Command]], Awaitable[list[Any]]]
Status = tuple[str, bool, bool]
"""Vendor id, open for business, online."""


class Feed:
    """Collects changes and writes them to the stream `key`, of about `length` entries, every `interval` seconds.

    `run` executes Redis commands; its result holds an exception for each command without an answer. `statuses` returns
    the statuses of this process's vendors; a status is written when it differs from the last one written.
    """

    def __init__(
        self,
        run: Run,
        statuses: Callable[[], Iterable[Status]],
        process: str,
        clock: Callable[[], int],
        *,
        key: str,
        length: int,
        interval: float,
    ) -> None:
        self.written = 0
        """The number of entries written."""
        self.outage: str | None = None
        """Why the stream can't be written; None while it can."""
        self._run = run
        self._statuses = statuses
        self._process = process
        self._clock = clock
        self._key = key.encode()
        self._writers = b"{%s}:writers" % self._key
        self._length = length
        self._interval = interval
        self._positions: dict[str, Position] = {}
        self._written_statuses: dict[str, tuple[bool, bool]] = {}
        self._newest: dict[str, int] = {}
        """The version of the last position written, by vendor."""
        self._heartbeat: int | None = None
        """The newest heartbeat that Redis acknowledged, epoch ms."""
        self._checked = 0

    @property
    def pending(self) -> int:
        """The number of vendors with a position to write."""
        return len(self._positions)

    def position(self, vendor_id: str, position: Position) -> None:
        """Adds a committed position."""
        held = self._positions.get(vendor_id)
        if held is not None:
            self._positions[vendor_id] = position.after(held) or held
        elif position.timestamp > self._newest.get(vendor_id, -1):
            self._positions[vendor_id] = position

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.flush()

    async def close(self) -> None:
        """Writes pending changes, and removes this process. If that fails, another process will write a gap."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if await self.flush():
                    await self._run([Command(self._key, ("HDEL", self._writers, self._process))])
        except TimeoutError:
            log.warning("the position stream is incomplete; a gap entry will follow", pending=self.pending)

    async def flush(self) -> bool:
        """Writes the merged changes, and returns whether none are left. Failed ones are kept unless newer ones came."""
        now = self._clock()
        statuses = self._new_statuses()
        if not (
            self._positions
            or statuses
            or self._heartbeat is None
            or abs(now - self._heartbeat) >= HEARTBEAT_EVERY * 1000
        ):
            return True
        positions, self._positions = self._positions, {}
        try:
            await self._detect_loss(now)
            await self._write_positions(positions)
            await self._write_statuses(statuses, now)
            await self._send_heartbeat(now)
            if abs(now - self._checked) >= CHECK_EVERY * 1000:
                await self._report_dead(now)
                self._checked = now
        except Unavailable as away:
            if self.outage is None:
                log.warning(
                    "the position stream can't be written; changes are kept, merged per vendor", cause=str(away)
                )
            self.outage = str(away)
        else:
            if self.outage is not None:
                log.info("the position stream is written again")
            self.outage = None
        finally:
            for vendor_id, position in positions.items():
                self.position(vendor_id, position)
        return self.outage is None and not self._positions

    def _new_statuses(self) -> list[Status]:
        served = {vendor_id: (open, online) for vendor_id, open, online in self._statuses()}
        for vendor_id in [vendor_id for vendor_id in self._written_statuses if vendor_id not in served]:
            del self._written_statuses[vendor_id]  # another process serves it, or none
        return [
            (vendor_id, *status)
            for vendor_id, status in served.items()
            if self._written_statuses.get(vendor_id) != status
        ]

    async def _write_positions(self, positions: dict[str, Position]) -> None:
        """Writes positions in slices, and removes the written ones."""
        while positions:
            some = list(positions.items())[:SLICE]
            await self._add(
                [
                    ("type", "location", "vendorId", vendor_id, "lat", repr(lat), "long", repr(long), "timestamp", at)
                    for vendor_id, (at, lat, long, _) in some
                ]
            )
            for vendor_id, position in some:
                del positions[vendor_id]
                self._newest.pop(vendor_id, None)
                self._newest[vendor_id] = position.version
            while len(self._newest) > MOST_KNOWN:
                del self._newest[next(iter(self._newest))]

    async def _write_statuses(self, statuses: list[Status], now: int) -> None:
        for start in range(0, len(statuses), SLICE):
            some = statuses[start : start + SLICE]
            await self._add(
                [
                    (
                        *("type", "status", "vendorId", vendor_id, "open", words(open), "online", words(online)),
                        *("timestamp", now, "process", self._process),
                    )
                    for vendor_id, open, online in some
                ]
            )
            self._written_statuses.update({vendor_id: (open, online) for vendor_id, open, online in some})

    async def _detect_loss(self, now: int) -> None:
        """Writes a gap if Redis lost entries of this process."""
        if self._heartbeat is None:
            return
        held, there = await self._ask(("HGET", self._writers, self._process), ("EXISTS", self._key))
        if held == b"%d" % self._heartbeat:
            return
        # Without the stream, Redis lost everything. With it, another process considered this one dead.
        since = int(held) if held is not None else self._heartbeat if there else 0
        await self._gap(since, now, "Redis lost entries" if held is not None or not there else "silent for too long")
        self._heartbeat = None
        self._written_statuses.clear()  # so that all are written again

    async def _send_heartbeat(self, now: int) -> None:
        await self._ask(("HSET", self._writers, self._process, now))
        self._heartbeat = now

    async def _report_dead(self, now: int) -> None:
        """Writes one gap for each process that died."""
        (held,) = await self._ask(("HGETALL", self._writers))
        pairs = list(zip(held[::2], held[1::2], strict=True))
        for process, heartbeat in pairs:
            if process.decode() != self._process and now - int(heartbeat) > DEAD_AFTER * 1000:
                (mine,) = await self._ask(("HDEL", self._writers, process))
                if mine:
                    await self._gap(int(heartbeat), now, "a process died", process.decode())

    async def _gap(self, since: int, until: int, cause: str, process: str = "") -> None:
        log.warning(
            "entries may be missing in the position stream; wrote a gap entry", since=since, until=until, cause=cause
        )
        await self._add([("type", "gap", "since", since, "until", until, "cause", cause, "process", process)])

    async def _add(self, entries: Sequence[tuple[Any, ...]]) -> None:
        await self._ask(*[("XADD", self._key, "MAXLEN", "~", self._length, "*", *entry) for entry in entries])
        self.written += len(entries)

    async def _ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        answers = await self._run([Command(self._key, words) for words in commands])
        for answer in answers:
            if isinstance(answer, Exception):
                raise Unavailable(str(answer)) from answer
        return answers


def words(flag: bool) -> str:
    """Returns a JSON literal."""
    return "true" if flag else "false"
