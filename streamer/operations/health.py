"""Health endpoints: `/livez`, `/readyz` and `/health`.

`/livez` is the liveness probe: the event loop answers. `/readyz` is the readiness probe: customers can be served here.
It queries no other server, and an outage of PostgreSQL does not fail it: every process would be unready at once, while
all of them still serve customers. `/health` reports every part, including what needs attention soon, such as missing
partitions. Queries are shared by all callers and cached briefly, so that frequent probes cost PostgreSQL nothing; Redis
is probed continuously anyway. Causes may name hosts and databases, but no user, password or token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from aiohttp import web

from streamer import __version__
from streamer.errors import StreamerError
from streamer.ingest.batcher import Batcher
from streamer.operations.parts import Parts
from streamer.single_flight import SingleFlight
from streamer.storage.revisions import Condition
from streamer.storage.store import TableSize
from streamer.transport.problem import NO_STORE, json_response

log = structlog.get_logger()

T = TypeVar("T")

MAX_COMMIT_WAIT = 10.0
"""Seconds a ping may wait for its commit before storing counts as broken."""
PATIENCE = 0.8
"""Seconds that an answer waits for PostgreSQL."""
CONDITION_TTL = 5.0
SIZES_TTL = 60.0
"""Seconds for which a good result is cached."""
FAILURE_TTL = 0.25
"""Seconds for which a failure is cached."""


class Result(NamedTuple, Generic[T]):
    """The value of a probe, or the cause of its failure, and the seconds it took."""

    value: T | None
    cause: str | None
    seconds: float


class Probe(Generic[T]):
    """Caches the result of a query for `ttl` seconds; callers that arrive while it runs share it.

    `latest` is the newest result, however old.
    """

    def __init__(self, query: Callable[[], Awaitable[T]], ttl: float) -> None:
        self.runs = 0
        self.latest: Result[T] = Result(None, "it has not answered yet", 0.0)
        self._query = query
        self._ttl = ttl
        self._fresh_until = 0.0
        self._flight = SingleFlight(self._run, "probe")

    async def result(self) -> Result[T]:
        """Returns the cached result while it is fresh, else a new one; the previous one if that takes too long."""
        if time.monotonic() >= self._fresh_until:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._flight.result()
        return self.latest

    async def close(self) -> None:
        """Cancels the running query."""
        await self._flight.close()

    async def _run(self) -> None:
        self.runs += 1
        began = time.monotonic()
        value, cause = None, None
        try:
            value = await self._query()
        except StreamerError as error:
            cause = str(error)
        except Exception as error:
            log.exception("unexpected error in a health probe", error=repr(error))
            cause = repr(error)
        now = time.monotonic()
        self.latest = Result(value, cause, now - began)
        self._fresh_until = now + (self._ttl if cause is None else min(FAILURE_TTL, self._ttl))


class Health:
    """Checks all parts of one process, and the other workers of its server."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started = time.monotonic()
        store = parts.store
        self.condition: Probe[Condition] = Probe(lambda: store.condition(datetime.now(UTC).date()), CONDITION_TTL)
        self.sizes: Probe[list[TableSize]] = Probe(store.table_sizes, SIZES_TTL)

    async def watch(self) -> None:
        """Keeps the database's condition current for `/metrics`, forever."""
        while True:
            await self.condition.result()
            await asyncio.sleep(CONDITION_TTL)

    async def close(self) -> None:
        """Cancels running queries."""
        for probe in (self.condition, self.sizes):
            await probe.close()

    async def livez(self, _: web.Request) -> web.Response:
        """`GET /livez`: always 200."""
        return json_response({"status": "ok"}, headers=NO_STORE)

    async def readyz(self, _: web.Request) -> web.Response:
        """`GET /readyz`: 200 when customers can be served, else 503 with each cause."""
        causes = self.unready()
        answer = {"status": "unready", "causes": causes} if causes else {"status": "ready"}
        return json_response(answer, 503 if causes else 200, NO_STORE)

    async def health(self, _: web.Request) -> web.Response:
        """`GET /health`: 200 `healthy`, else 503 `unhealthy` with `error` and causes; every check and table size."""
        condition, sizes = await asyncio.gather(self.condition.result(), self.sizes.result())
        causes = self.causes()
        found, parts = condition.value, self._parts
        broker, batcher, supervisor = parts.broker, parts.batcher, parts.supervisor
        answer: dict[str, Any] = {
            "status": "unhealthy" if causes else "healthy",
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "version": __version__,
            "uptime": round(time.monotonic() - self._started, 1),
            "checks": {
                "postgresql": {"ok": "postgresql" not in causes, "milliseconds": round(condition.seconds * 1000, 2)},
                "redis": {"ok": broker.up, "gaps": broker.gaps, "pending": broker.pending},
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
                    "waiting": batcher.pings,
                    "oldestSeconds": round(batcher.oldest_wait, 3),
                    "positionsWaiting": parts.positions.pending,
                },
                "tasks": {"ok": not supervisor.failures, "deaths": supervisor.deaths},
            },
        }
        if sizes.value is not None:
            answer["tables"] = [size._asdict() for size in sizes.value]
        if causes:
            answer["error"] = "; ".join(f"{part}: {cause}" for part, cause in causes.items())
            answer["causes"] = causes
        return json_response(answer, 503 if causes else 200, NO_STORE)

    def unready(self) -> dict[str, str]:
        """Returns why this process cannot serve customers, by part; empty when it can."""
        parts = self._parts
        causes = {**parts.supervisor.failures, **(parts.peers.failures() if parts.peers is not None else {})}
        if parts.connections.draining:
            causes["server"] = "stopping"
        if not parts.broker.up:
            causes["redis"] = parts.broker.cause or "down"
        if (cause := parts.clock_check.cause) is not None:
            causes["clock"] = cause
        # Without a token customers are served all the same; with keys of an hour ago nearly all of them are.
        if parts.keys is not None and parts.settings.watch_auth == "required" and parts.keys.missing is not None:
            causes["jwks"] = parts.keys.missing
        if parts.mqtt is not None and parts.mqtt.cause is not None:
            causes["mqtt"] = parts.mqtt.cause
        return causes

    def causes(self) -> dict[str, str]:
        """Returns everything known to need attention, by part."""
        parts = self._parts
        own = {
            "storing": storing_failure(parts.batcher),
            "positions": parts.positions.outage,
            "change-poller": parts.change_poller.cause,
            "jwks": None if parts.keys is None else parts.keys.cause,
        }
        # Last, as a task that was given up has the name of its part.
        known = {part: cause for part, cause in own.items() if cause is not None}
        return {**known, **shortcomings(self.condition.latest), **self.unready()}


def storing_failure(batcher: Batcher) -> str | None:
    """Returns why pings are not stored in time, None when they are."""
    if batcher.outage is not None:
        return batcher.outage
    if batcher.oldest_wait > MAX_COMMIT_WAIT:
        return f"the oldest of {batcher.pings} pings has waited {batcher.oldest_wait:.0f} s for its commit"
    return None


def shortcomings(condition: Result[Condition]) -> dict[str, str]:
    """Returns problems of the database, by part."""
    found = condition.value
    if found is None:
        return {} if condition.cause is None else {"postgresql": condition.cause}
    causes = {}
    if found.behind:
        causes["migration"] = (
            f"the database is at revision {found.revision or 'none'}, older than this version needs:"
            " run `streamer db upgrade`"
        )
    if found.days_ahead < 1:
        causes["partitions"] = (
            f"locations has no partition for {'tomorrow' if found.days_ahead == 0 else 'today'}; pings of that day go"
            " into the default partition: run `streamer db upgrade` as the tables' owner"
        )
    return causes
