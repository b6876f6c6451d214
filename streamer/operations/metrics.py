"""`/metrics` for Prometheus: what the parts know and what `tally.py` counted, read when somebody asks.

Labels are from closed tables (codes, routes, kinds of work): none grows with vendors, customers or what they send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from streamer import __version__
from streamer.broker.broker import Broker
from streamer.broker.stream import Feed
from streamer.broker.subscriptions import Subscriptions
from streamer.counters import Counters, Histogram
from streamer.ingest.batcher import Batcher
from streamer.ingest.position_writer import PositionWriter
from streamer.live.index import LiveIndex
from streamer.live.ticker import Ticker
from streamer.operations.backup import Backups
from streamer.operations.loop_lag import LoopLag
from streamer.operations.workers.peers import Peers
from streamer.storage.revisions import Condition
from streamer.supervisor import Supervisor
from streamer.transport.admission import Admission
from streamer.transport.connection import OTHER_CODE, ConnectionRegistry

PARTS = ("postgresql", "redis", "storing", "server")
"""What can stand in the way of serving, and always has a series; a task that died has one when it did."""

OWN = "own"
"""In the query: the metrics of the one process that answers."""

Labels = TypeVar("Labels", bound=tuple[str, ...])


class Metrics:
    """One process's metrics, and with `siblings` those of all workers of its server, labelled by `worker`."""

    def __init__(self, parts: Parts, *, process: bool = True, peers: Peers | None = None) -> None:
        self._peers = peers
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(parts)
        if process:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
            GCCollector(registry=self._registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All of them as they are now, and the content type that was chosen."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    async def metrics(self, request: web.Request) -> web.Response:
        """`GET /metrics`: in Prometheus' text format or OpenMetrics, by `Accept`."""
        accept = request.headers.get("Accept", "")
        if self._peers is None or OWN in request.query:
            body, content_type = self.render(accept)
        else:
            answers = await self._peers.ask(f"/metrics?{OWN}", "application/openmetrics-text")
            encode, content_type = choose_encoder(accept)
            body = encode(Together(self._peers.number, self._registry, answers))
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


class Together(Collector):
    """The metrics of a worker and the answers of the others, each sample labelled by its `worker`."""

    def __init__(self, number: int, own: Collector, others: Mapping[int, bytes]) -> None:
        self._number = number
        self._own = own
        self._others = others

    def collect(self) -> Iterable[Metric]:
        """All families, each once."""
        families: dict[str, Metric] = {}
        parsed = {number: parse(text.decode()) for number, text in self._others.items()}
        for number, found in {self._number: self._own.collect(), **parsed}.items():
            for family in found:
                together = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                together.samples += [
                    sample._replace(labels={"worker": str(number), **sample.labels}) for sample in family.samples
                ]
        return families.values()


class Parts(Collector):
    """Reads the parts of one server; `causes()` says what stands in the way of serving, by part."""

    def __init__(
        self,
        counters: Counters,
        batcher: Batcher,
        positions: PositionWriter,
        broker: Broker,
        index: LiveIndex,
        ticker: Ticker,
        watches: Subscriptions,
        open_connections: ConnectionRegistry,
        admission: Admission,
        supervisor: Supervisor,
        loop_lag: LoopLag,
        causes: Callable[[], Mapping[str, str]],
        condition: Callable[[], Condition | None],
        backups: Backups | None = None,
        feed: Feed | None = None,
    ) -> None:
        self._counters = counters
        self._batcher = batcher
        self._position_writer = positions
        self._broker = broker
        self._index = index
        self._ticker = ticker
        self._watches = watches
        self._open_connections = open_connections
        self._admission = admission
        self._supervisor = supervisor
        self._loop_lag = loop_lag
        self._causes = causes
        self._condition = condition
        self._backups = backups
        self._feed = feed

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield InfoMetricFamily("streamer", "This process.", {"version": __version__, "process": self._index.me})
        yield from self._state()
        yield from self._storing()
        yield from self._living()
        yield from self._connections()
        if self._backups is not None:
            yield from backed_up(self._backups)

    def _state(self) -> Iterator[Metric]:
        causes, count = self._causes(), tasks()
        parts = {(part,): float(part in causes) for part in (*PARTS, *causes)}
        yield gauges("streamer_unready", "1: this part stands in the way of serving.", ("part",), parts)
        refusals = self._admission.rate.refused
        yield counter("streamer_handshakes_refused", "Clients told to come again: too many waited to get in.", refusals)
        yield gauge("streamer_tasks", "Tasks of the event loop: of connections, and long-lived ones.", count)
        yield counter("streamer_task_deaths", "Long-lived tasks that died and were started anew.", self._deaths)
        yield gauge("streamer_tasks_given_up", "Long-lived tasks that can't go on.", len(self._supervisor.failures))
        yield histogram("streamer_loop_delay_seconds", "How late the event loop was for a timer.", self._counters.loop)
        if (found := self._condition()) is not None:
            behind = float(found.revision is None or (found.known and not found.newest))
            yield gauge("streamer_migration_behind", "1: the database is older than this version needs.", behind)
            ahead = "Days after today that have a partition; -1: not even today."
            yield gauge("streamer_partitions_days_ahead", ahead, found.days_ahead)
        yield gauge("streamer_loop_delay_last_seconds", "The same, the newest.", self._loop_lag.late)

    def _storing(self) -> Iterator[Metric]:
        batcher, counters = self._batcher, self._counters
        stored = batcher.settled_pings - batcher.rejected_pings
        yield counter("streamer_pings_stored", "Pings committed and acked, a resent one again.", stored)
        rejected = {(code,): count for code, count in counters.rejected.items()}
        yield counts("streamer_pings_rejected", "Pings that never will be stored.", ("reason",), rejected)
        yield histogram("streamer_batch_pings", "Pings of a batch that was committed.", counters.batches)
        yield histogram("streamer_commit_seconds", "From the start of a batch to its commit.", counters.commits)
        yield histogram("streamer_ack_seconds", "How long a message's pings waited for their commit.", counters.acks)
        yield counter("streamer_store_retries", "Batches that had to be tried again.", batcher.retries)
        yield gauge("streamer_buffer_pings", "Pings that wait for PostgreSQL or are on their way.", batcher.pings)
        yield gauge("streamer_buffer_bytes", "Bytes that these take.", batcher.bytes)
        yield gauge("streamer_buffer_fill_ratio", "The share of the buffer that is taken.", batcher.fill)
        yield gauge("streamer_buffer_oldest_seconds", "How long the oldest of them has waited.", batcher.oldest_wait)
        yield gauge("streamer_buffer_full", "1: sockets wait for room in the buffer.", float(batcher.full))
        yield counter("streamer_positions_noted", "Newest fixes of stored messages.", batcher.settled_chunks)
        yield counter(
            "streamer_positions_written", "Of these, merged by vendor and written.", self._position_writer.written
        )
        yield gauge(
            "streamer_positions_pending", "Vendors whose position is to be written.", self._position_writer.pending
        )
        yield timed("streamer_postgresql_seconds", "PostgreSQL at work.", "work", counters.postgresql)

    def _living(self) -> Iterator[Metric]:
        broker, index, ticker = self._broker, self._index, self._ticker
        yield gauge("streamer_redis_up", "1: all of Redis answers and is heard.", float(broker.up))
        yield timed("streamer_redis_seconds", "A round trip to Redis.", "lane", self._counters.redis)
        yield counter("streamer_bus_gaps", "Times that what other processes said was missed.", broker.gaps)
        yield gauge("streamer_bus_pending", "Vendors of which something is to be written to Redis.", broker.pending)
        yield gauge("streamer_bus_cells", "Cells heard.", len(broker.cells))
        yield gauge("streamer_vendors_known", "Vendors in the live index.", len(index.vendors))
        yield gauge("streamer_vendors_served", "Vendors that this process tells of.", len(broker.local_vendors.sockets))
        yield gauge("streamer_watches", "Open watches.", len(self._watches))
        yield gauge("streamer_views", "Different areas and lists among them.", len(index.views))
        yield counter("streamer_ticks", "Times that changes were told to watchers.", ticker.ticks)
        yield counter("streamer_live_changes", "Vendors that changed, merged by tick.", index.changes)
        yield counter("streamer_frames", "Updates and snapshots written to watchers.", ticker.frames)
        yield counter("streamer_frame_bytes", "Bytes of updates and snapshots written to watchers.", index.sent)
        yield counter("streamer_positions_delivered", "Positions in these, about.", index.delivered)
        if self._feed is not None:
            yield counter("streamer_feed_entries", "Entries written into the feed.", self._feed.written)
            yield gauge("streamer_feed_pending", "Vendors whose position is to be written there.", self._feed.pending)
        yield counter("streamer_frames_held_back", "Updates merged into a later one.", index.held_back)

    def _connections(self) -> Iterator[Metric]:
        open_connections, counters = self._open_connections, self._counters
        kinds: dict[tuple[str, ...], float] = {("vendor",): 0.0, ("watch",): 0.0, ("events",): 0.0}
        opened = {kind: float(counters.opened[kind[0]]) for kind in kinds}
        for (kind, _), count in counters.closed.items():
            kinds[kind,] -= count
        kinds = {kind: opened[kind] + closed for kind, closed in kinds.items()}
        yield gauges("streamer_connections", "Open WebSockets and streams.", ("kind",), kinds)
        yield counts("streamer_connections_opened", "WebSockets and streams that opened.", ("kind",), opened)
        closed = {(kind, code_label(code)): count for (kind, code), count in counters.closed.items()}
        yield counts("streamer_connections_closed", "WebSockets and streams that ended.", ("kind", "code"), closed)
        yield gauge(
            "streamer_slow_clients", "Clients that have not taken all they were sent.", open_connections.slow_clients
        )
        yield gauge("streamer_unread_bytes", "Bytes that wait for them.", open_connections.unread_bytes)
        refused = {(code,): count for code, count in counters.refused.items()}
        yield counts("streamer_messages_refused", "Messages answered with an error.", ("code",), refused)
        requests = {(method, route, str(status)): count for (method, route, status), count in counters.requests.items()}
        labels = ("method", "route", "status")
        yield counts("streamer_http_requests", "HTTP requests, WebSockets excepted.", labels, requests)
        yield timed("streamer_http_seconds", "HTTP requests.", "route", counters.answered)

    @property
    def _deaths(self) -> int:
        return self._supervisor.deaths + self._batcher.deaths


def backed_up(backups: Backups) -> Iterator[Metric]:
    """Of the newest backup; times are 0 when there never was one."""
    yield gauge("streamer_backup_last_timestamp_seconds", "When the newest backup was made, 0: never.", backups.last)
    yield gauge("streamer_backup_proven_timestamp_seconds", "When one was last proved, 0: never.", backups.proven)
    yield gauge("streamer_backup_bytes", "Bytes of the newest backup.", backups.bytes)


def parse(text: str) -> Iterable[Metric]:
    """The families of a text in OpenMetrics' format."""
    return text_string_to_metric_families(text)  # type: ignore[no-untyped-call,no-any-return]  # untyped there


def tasks() -> int:
    """How many tasks the running loop has; 0 without one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


def code_label(code: int) -> str:
    """A close code as a label."""
    return "other" if code == OTHER_CODE else str(int(code))


def gauge(name: str, help: str, value: float) -> Metric:
    """One value that goes up and down."""
    return GaugeMetricFamily(name, help, value=value)


def gauges(name: str, help: str, labels: tuple[str, ...], values: Mapping[Labels, float]) -> Metric:
    """The same by labels."""
    family = GaugeMetricFamily(name, help, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def counter(name: str, help: str, value: float) -> Metric:
    """One value that only grows; exported with `_total`."""
    return CounterMetricFamily(name, help, value=value)


def counts(name: str, help: str, labels: tuple[str, ...], values: Mapping[Labels, float]) -> Metric:
    """The same by labels."""
    family = CounterMetricFamily(name, help, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def histogram(name: str, help: str, values: Histogram) -> Metric:
    """How values are spread."""
    return HistogramMetricFamily(name, help, buckets=buckets(values), sum_value=values.sum)


def timed(name: str, help: str, label: str, values: Mapping[str, Histogram]) -> Metric:
    """The same by one label."""
    family = HistogramMetricFamily(name, help, labels=(label,))
    for what, each in values.items():
        family.add_metric((what,), buckets(each), each.sum)
    return family


def buckets(values: Histogram) -> list[tuple[str, float]]:
    """As Prometheus has them."""
    return [("+Inf" if bound == inf else str(bound), float(count)) for bound, count in values.cumulative()]
