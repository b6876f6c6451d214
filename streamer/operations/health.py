"""How the server is, for machines that ask every second: `/livez`, `/readyz`, `/health`.

`/livez`: the loop turns. `/readyz`: vendors and customers can be served here. `/health`: all that an operator would
look at first; it also minds what is still served but needs somebody soon, as partitions that were not made. What costs
PostgreSQL anything is asked once for all who ask meanwhile, and not again for a while; Redis is probed all the time
anyway. Causes name hosts and databases, never a user, a password or a token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from typing import Any, Generic, TypeVar

import structlog
from aiohttp import web

from streamer import __version__
from streamer.broker.broker import Broker
from streamer.errors import StreamerError
from streamer.ingest.batcher import Batcher
from streamer.ingest.position_writer import PositionWriter
from streamer.operations.workers.peers import Peers
from streamer.storage.revisions import Condition
from streamer.storage.store import Store, TableSize
from streamer.supervisor import Supervisor
from streamer.transport.connection import ConnectionRegistry
from streamer.transport.problem import json_response

log = structlog.get_logger()

T = TypeVar("T")

LATE = 10.0
"""Seconds that a ping may wait for its commit before something is wrong with storing."""
PING_FRESH = 1.0
CONDITION_FRESH = 5.0
SIZES_FRESH = 60.0
"""Seconds for which an answer is good; one that could not be had, BAD_FRESH."""
BAD_FRESH = 0.25
WATCH_EVERY = 30.0


class Answer(Generic[T]):
    """What was answered, or why not; `seconds` that it took."""

    __slots__ = ("cause", "seconds", "value")

    def __init__(self, value: T | None, cause: str | None, seconds: float) -> None:
        self.value = value
        self.cause = cause
        self.seconds = seconds


class Probe(Generic[T]):
    """A question that many may ask and that is put once: who asks meanwhile waits for the same answer."""

    def __init__(self, ask: Callable[[], Awaitable[T]], fresh: float) -> None:
        self._ask = ask
        self._fresh = fresh
        self._answer: Answer[T] | None = None
        self._until = 0.0
        self._asking: asyncio.Task[Answer[T]] | None = None
        self.asked = 0

    @property
    def latest(self) -> T | None:
        """What was answered last, however long ago; None when that was no answer."""
        return None if self._answer is None else self._answer.value

    async def answer(self) -> Answer[T]:
        """The answer, a new one or one that is still good."""
        if self._answer is not None and time.monotonic() < self._until:
            return self._answer
        if self._asking is None:
            self._asking = asyncio.create_task(self._put(), name="probe")
        # Who gives up waiting takes the answer from nobody else.
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _put(self) -> Answer[T]:
        self.asked += 1
        began = time.monotonic()
        value, cause = None, None
        try:
            value = await self._ask()
        except StreamerError as away:
            cause = str(away)
        except Exception as error:
            log.exception("a health probe failed in a way that should not be", error=repr(error))
            cause = repr(error)
        finally:
            self._asking = None
        now = time.monotonic()
        self._answer = Answer(value, cause, now - began)
        self._until = now + (self._fresh if cause is None else min(BAD_FRESH, self._fresh))
        return self._answer


class Health:
    """Looks at all parts of one process, and at the other workers of its server."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        batcher: Batcher,
        positions: PositionWriter,
        connections: ConnectionRegistry,
        supervisor: Supervisor,
        peers: Peers | None = None,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self._broker = broker
        self._batcher = batcher
        self._position_writer = positions
        self._connections = connections
        self._supervisor = supervisor
        self._peers = peers
        self._began = time.monotonic()
        self.ping: Probe[None] = Probe(store.ping, PING_FRESH)
        self.condition: Probe[Condition] = Probe(lambda: store.condition(today()), CONDITION_FRESH)
        self.sizes: Probe[list[TableSize]] = Probe(store.table_sizes, SIZES_FRESH)

    async def watch(self) -> None:
        """Know the database's condition, whether anybody asks or not, for ever."""
        while True:
            await self.condition.answer()
            await asyncio.sleep(WATCH_EVERY)

    @property
    def found(self) -> Condition | None:
        """The database's condition as it was last known; None while it can't be asked."""
        return self.condition.latest

    async def close(self) -> None:
        """Ask nothing any more."""
        for probe in (self.ping, self.condition, self.sizes):
            await probe.close()

    # handlers

    async def livez(self, _: web.Request) -> web.Response:
        """`GET /livez`: the loop turns."""
        return json_response({"status": "ok"}, headers={"Cache-Control": "no-store"})

    async def readyz(self, _: web.Request) -> web.Response:
        """`GET /readyz`: 200 when vendors and customers can be served, else 503 with each cause."""
        causes = await self.unready()
        answer = {"status": "unready", "causes": causes} if causes else {"status": "ready"}
        return json_response(answer, 503 if causes else 200, {"Cache-Control": "no-store"})

    async def health(self, _: web.Request) -> web.Response:
        """`GET /health`: 200 `healthy` with `tables` and every check, else 503 `unhealthy` with `error` and causes."""
        condition, sizes, causes = await asyncio.gather(self.condition.answer(), self.sizes.answer(), self.unready())
        causes |= shortcomings(condition)
        found = condition.value
        answer: dict[str, Any] = {
            "status": "unhealthy" if causes else "healthy",
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "version": __version__,
            "uptime": round(time.monotonic() - self._began, 1),
            "checks": {
                "postgresql": {"ok": "postgresql" not in causes, "milliseconds": round(condition.seconds * 1000, 2)},
                "redis": {"ok": self._broker.up, "gaps": self._broker.gaps, "pending": self._broker.pending},
                "migration": {
                    "ok": "migration" not in causes and found is not None,
                    "revision": None if found is None else found.revision,
                },
                "partitions": {
                    "ok": "partitions" not in causes and found is not None,
                    "daysAhead": None if found is None else found.days_ahead,
                },
                "storing": {
                    "ok": "storing" not in causes,
                    "waiting": self._batcher.pings,
                    "oldestSeconds": round(self._batcher.oldest_wait, 3),
                    "positionsWaiting": self._position_writer.pending,
                },
                "tasks": {"ok": not self._supervisor.failures, "deaths": self._supervisor.deaths},
            },
        }
        if sizes.value is not None:
            answer["tables"] = [size._asdict() for size in sizes.value]
        if causes:
            answer["error"] = "; ".join(f"{part}: {cause}" for part, cause in causes.items())
            answer["causes"] = causes
        return json_response(answer, 503 if causes else 200, {"Cache-Control": "no-store"})

    # what it finds

    async def unready(self) -> dict[str, str]:
        """What stands in the way of serving, by part; empty when nothing does."""
        causes = self.known()
        if (cause := (await self.ping.answer()).cause) is not None:
            causes["postgresql"] = cause
        return causes

    def known(self) -> dict[str, str]:
        """The same as far as it is known without asking anybody."""
        causes = {**self._supervisor.failures, **(self._peers.troubles() if self._peers is not None else {})}
        if self._connections.draining:
            causes["server"] = "stopping"
        if not self._broker.up:
            causes["redis"] = self._broker.cause or "away"
        if (cause := storing(self._batcher)) is not None:
            causes["storing"] = cause
        return causes


def storing(batcher: Batcher) -> str | None:
    """Why pings can't be stored as they should, None when they can."""
    if batcher.outage is not None:
        return batcher.outage
    if batcher.oldest_wait > LATE:
        return f"the oldest of {batcher.pings} pings has waited for its commit for {batcher.oldest_wait:.0f} s"
    return None


def shortcomings(condition: Answer[Condition]) -> dict[str, str]:
    """What of the database's condition needs somebody, by part."""
    found = condition.value
    if found is None:
        return {} if condition.cause is None else {"postgresql": condition.cause}
    causes = {}
    # One that this version does not know is newer: a migration goes ahead of the new processes.
    if found.revision is None or (found.known and not found.newest):
        causes["migration"] = (
            f"the database is at revision {found.revision or 'none'}, older than this version needs:"
            " run `streamer db upgrade`"
        )
    if found.days_ahead < 1:
        causes["partitions"] = (
            f"locations has no partition for {'tomorrow' if found.days_ahead == 0 else 'today'}; pings of that day are"
            " stored, but in the default partition: run `streamer db upgrade` as the tables' owner"
        )
    return causes
