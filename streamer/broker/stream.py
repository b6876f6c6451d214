"""What other services follow: a Redis Stream of committed positions and of statuses, merged per vendor.

Each vendor's newest change goes into the stream once an interval, a position after it is committed in PostgreSQL. While
Redis is away changes are kept, merged, one a vendor, and written when it is back. What may be missing in the stream is
said in it, by an entry of type `gap`: when a process died with changes unwritten, and when Redis lost what it had.
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
"""Commands sent at once: between two slices the live path has its turn."""
BEAT = 5.0
"""Seconds after which a process without news says that it lives."""
DEAD = 30.0
"""Seconds of silence after which a process is taken for dead, and others say what may be missing."""
LOOK = 10.0
"""Seconds between two looks for the dead."""
CLOSE_TIMEOUT = 3.0
MOST_KNOWN = 100_000
"""Vendors whose newest written time is kept, so that a backlog does not follow a newer position."""

Run = Callable[[Sequence[Command]], Awaitable[list[Any]]]
Status = tuple[str, bool, bool]
"""vendor_id, open for business, online."""


class Feed:
    """Collects changes and writes them to the stream `key`, about `length` entries long, every `interval` seconds.

    `run` carries out Redis commands and gives an exception in place of an answer that did not come. `statuses` gives
    those of the vendors that this process serves; each is written when it differs from what was written before.
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
        """Entries that Redis has taken."""
        self.outage: str | None = None
        """Why the stream can't be written just now, None when it can."""
        self._run = run
        self._statuses = statuses
        self._process = process
        self._clock = clock
        self._key = key.encode()
        self._writers = b"{%s}:writers" % self._key
        self._length = length
        self._interval = interval
        self._positions: dict[str, Position] = {}
        self._told: dict[str, tuple[bool, bool]] = {}
        self._newest: dict[str, int] = {}
        """The versions of what was written."""
        self._beaten: int | None = None
        """The time that Redis holds for this process, as far as is known."""
        self._looked = 0

    @property
    def pending(self) -> int:
        """Vendors whose position is still to be written."""
        return len(self._positions)

    def position(self, vendor_id: str, position: Position) -> None:
        """Takes a committed position."""
        held = self._positions.get(vendor_id)
        if held is not None:
            self._positions[vendor_id] = position.after(held) or held
        elif position.timestamp > self._newest.get(vendor_id, -1):
            self._positions[vendor_id] = position

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await asyncio.sleep(self._interval)
            await self.flush()

    async def close(self) -> None:
        """Write what is left and say goodbye; bounded. What can't be written is told as a gap by whoever looks next."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if await self.flush():
                    await self._run([Command(self._key, ("HDEL", self._writers, self._process))])
        except TimeoutError:
            log.warning("the feed was left unfinished; a gap will be told in it", pending=self.pending)

    async def flush(self) -> bool:
        """Write what is merged; what can't be written is kept under anything newer. Whether nothing is left."""
        now = self._clock()
        statuses = self._new_statuses()
        if not (self._positions or statuses or self._beaten is None or now - self._beaten >= BEAT * 1000):
            return True
        positions, self._positions = self._positions, {}
        try:
            await self._look_back(now)
            await self._write_positions(positions)
            await self._write_statuses(statuses, now)
            await self._beat(now)
            if now - self._looked >= LOOK * 1000:
                await self._bury(now)
                self._looked = now
        except Unavailable as away:
            if self.outage is None:
                log.warning("the feed can't be written; changes are kept, merged per vendor", cause=str(away))
            self.outage = str(away)
        else:
            if self.outage is not None:
                log.info("the feed is written again")
            self.outage = None
        finally:
            for vendor_id, position in positions.items():
                self.position(vendor_id, position)
        return self.outage is None and not self._positions

    def _new_statuses(self) -> list[Status]:
        served = {vendor_id: (open, online) for vendor_id, open, online in self._statuses()}
        for vendor_id in [vendor_id for vendor_id in self._told if vendor_id not in served]:
            del self._told[vendor_id]  # another process serves it, or none
        return [(vendor_id, *status) for vendor_id, status in served.items() if self._told.get(vendor_id) != status]

    async def _write_positions(self, positions: dict[str, Position]) -> None:
        """Write them slice by slice; those that are written are taken out."""
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
            self._told.update({vendor_id: (open, online) for vendor_id, open, online in some})

    async def _look_back(self, now: int) -> None:
        """Tell of a gap if Redis no longer has what it had taken of this process."""
        if self._beaten is None:
            return
        held, there = await self._ask(("HGET", self._writers, self._process), ("EXISTS", self._key))
        if held == b"%d" % self._beaten:
            return
        # Without its stream Redis lost all; with it, others took this process for dead.
        since = int(held) if held is not None else self._beaten if there else 0
        await self._gap(since, now, "Redis lost entries" if held is not None or not there else "silent for too long")
        self._beaten = None
        self._told.clear()  # all is told again

    async def _beat(self, now: int) -> None:
        await self._ask(("HSET", self._writers, self._process, now))
        self._beaten = now

    async def _bury(self, now: int) -> None:
        """Tell what may be missing of processes that ended without a goodbye; each is told of once."""
        (held,) = await self._ask(("HGETALL", self._writers))
        pairs = list(zip(held[::2], held[1::2], strict=True))
        for process, beat in pairs:
            if process.decode() != self._process and now - int(beat) > DEAD * 1000:
                (mine,) = await self._ask(("HDEL", self._writers, process))
                if mine:
                    await self._gap(int(beat), now, "a process ended without a goodbye", process.decode())

    async def _gap(self, since: int, until: int, cause: str, process: str = "") -> None:
        log.warning("the feed may miss changes, and says so", since=since, until=until, cause=cause)
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
    """As JSON has it."""
    return "true" if flag else "false"
