"""`/metrics` for Prometheus, read from the parts and from `counters.py` on each scrape.

Labels come from closed sets (codes, routes, kinds of work): none grows with vendors, customers or what they send.
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
from streamer.counters import Histogram
from streamer.operations.health import Health
from streamer.operations.parts import Parts
from streamer.protocol.alerts import EVENTS
from streamer.transport.connection import OTHER_CODE

UNREADY_PARTS = ("redis", "clock", "server", "jwks")
UNHEALTHY_PARTS = (
    *UNREADY_PARTS,
    *("postgresql", "storing", "positions", "change-poller", "migration", "partitions"),
)
"""Parts that always have a time series; a task gets one when it fails."""

OWN = "own"
"""Query parameter: only the metrics of the process that answers."""

Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]
Labels = TypeVar("Labels", bound=tuple[str, ...])


class Metrics:
    """Serves one process's metrics and, with several workers, those of all workers labelled by `worker`."""

    def __init__(self, parts: Parts, health: Health) -> None:
        self._peers = parts.peers
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(ServerCollector(parts, health))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def metrics(self, request: web.Request) -> web.Response:
        """`GET /metrics`: Prometheus text format or OpenMetrics, by `Accept`."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        collector: Collector = self._registry
        if self._peers is not None and OWN not in request.query:
            answers = await self._peers.ask(f"/metrics?{OWN}", "application/openmetrics-text")
            collector = WorkersCollector(self._peers.number, self._registry, answers)
        headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
        return web.Response(body=encode(collector), headers=headers)


class WorkersCollector(Collector):
    """Merges the metrics of this worker and the answers of the others; each sample is labelled by `worker`."""

    def __init__(self, number: int, own: Collector, others: Mapping[int, bytes]) -> None:
        self._number = number
        self._own = own
        self._others = others

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        parse: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
        parsed = {number: parse(text.decode()) for number, text in self._others.items()}
        for number, found in {self._number: self._own.collect(), **parsed}.items():
            for family in found:
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [
                    sample._replace(labels={"worker": str(number), **sample.labels}) for sample in family.samples
                ]
        return families.values()


class ServerCollector(Collector):
    """Collects the metrics of one server's parts."""

    def __init__(self, parts: Parts, health: Health) -> None:
        self._parts = parts
        self._health = health

    def collect(self) -> Iterator[Metric]:
        parts = self._parts
        yield InfoMetricFamily("streamer", "This process.", {"version": __version__, "process": parts.index.me})
        yield from self._state()
        yield from self._storage()
        yield from self._live()
        yield from self._connections()
        yield from self._alerts()
        if (backups := parts.backups) is not None:
            last, verified = backups.last, backups.proven
            yield gauge("streamer_backup_last_timestamp_seconds", "Time of the newest backup, 0: never.", last)
            yield gauge(
                "streamer_backup_proven_timestamp_seconds", "Time of the last restore test, 0: never.", verified
            )
            yield gauge("streamer_backup_bytes", "Size of the newest backup.", backups.bytes)

    def _state(self) -> Iterator[Metric]:
        parts = self._parts
        supervisor, unready, unhealthy = parts.supervisor, self._health.unready(), self._health.causes()
        found = {(part,): float(part in unready) for part in (*UNREADY_PARTS, *unready)}
        yield gauges("streamer_unready", "1: this part keeps the process from serving customers.", ("part",), found)
        found = {(part,): float(part in unhealthy) for part in (*UNHEALTHY_PARTS, *unhealthy)}
        yield gauges("streamer_unhealthy", "1: this part needs attention, as `/health` reports.", ("part",), found)
        refused, deaths = parts.admission.refused, supervisor.deaths
        yield counter("streamer_handshakes_refused", "Connections refused by admission control.", refused)
        yield gauge("streamer_tasks", "Tasks on the event loop.", len(asyncio.all_tasks()))
        yield counter("streamer_task_deaths", "Long-lived tasks that failed and were restarted.", deaths)
        yield gauge("streamer_tasks_given_up", "Long-lived tasks that failed for good.", len(supervisor.failures))
        yield histogram("streamer_loop_delay_seconds", "Event-loop lag.", parts.counters.loop)
        yield gauge("streamer_loop_delay_last_seconds", "Newest event-loop lag.", parts.loop_lag.late)
        if (condition := self._health.condition.latest.value) is not None:
            help = "1: the database is older than this version needs."
            yield gauge("streamer_migration_behind", help, float(condition.behind))
            ahead = "Days after today that have a partition; -1: today has none."
            yield gauge("streamer_partitions_days_ahead", ahead, condition.days_ahead)

    def _storage(self) -> Iterator[Metric]:
        batcher, positions, counters = self._parts.batcher, self._parts.positions, self._parts.counters
        stored = batcher.settled_pings - batcher.rejected_pings
        yield counter("streamer_pings_stored", "Pings committed and acked, resent ones included.", stored)
        rejected = {(code,): count for code, count in counters.rejected.items()}
        yield counts("streamer_pings_rejected", "Pings that will never be stored.", ("reason",), rejected)
        yield histogram("streamer_batch_pings", "Pings per committed batch.", counters.batches)
        yield histogram("streamer_commit_seconds", "Time from the start of a batch to its commit.", counters.commits)
        yield histogram("streamer_ack_seconds", "Time that a message's pings waited for their commit.", counters.acks)
        yield counter("streamer_store_retries", "Batches that were retried.", batcher.retries)
        yield gauge("streamer_buffer_pings", "Pings that are not committed yet.", batcher.pings)
        yield gauge("streamer_buffer_bytes", "Memory of these pings.", batcher.bytes)
        yield gauge("streamer_buffer_fill_ratio", "Used share of the buffer.", batcher.fill)
        yield gauge("streamer_buffer_oldest_seconds", "Age of the oldest buffered ping.", batcher.oldest_wait)
        yield gauge("streamer_buffer_full", "1: sockets wait for room in the buffer.", float(batcher.full))
        yield counter("streamer_positions_noted", "Positions to write, one per stored message.", batcher.settled_chunks)
        yield counter("streamer_positions_written", "Positions written, merged by vendor.", positions.written)
        yield gauge("streamer_positions_pending", "Vendors whose position is not written yet.", positions.pending)
        yield timed("streamer_postgresql_seconds", "PostgreSQL statements.", "work", counters.postgresql)

    def _live(self) -> Iterator[Metric]:
        parts = self._parts
        broker, index, ticker = parts.broker, parts.index, parts.ticker
        yield gauge("streamer_redis_up", "1: Redis is connected for writing and for subscriptions.", float(broker.up))
        offsets = {(name,): offset for name, offset in parts.clock_check.offsets.items()}
        yield gauges("streamer_clock_offset_seconds", "Seconds the clock is ahead of a reference.", ("of",), offsets)
        yield timed("streamer_redis_seconds", "Redis round trips.", "lane", parts.counters.redis)
        yield counter("streamer_bus_gaps", "Times that updates of other processes were missed.", broker.gaps)
        yield gauge("streamer_bus_pending", "Vendors with changes to publish.", broker.pending)
        yield gauge("streamer_bus_cells", "Subscribed cells.", len(broker.cells))
        yield gauge("streamer_vendors_known", "Vendors in the live index.", len(index.vendors))
        yield gauge("streamer_vendors_served", "Vendors published by this process.", len(broker.local_vendors.sockets))
        yield gauge("streamer_watches", "Open watches.", len(parts.watches))
        yield gauge("streamer_views", "Distinct areas and lists among the watches.", len(index.views))
        yield counter("streamer_ticks", "Rounds of updates to customers.", ticker.ticks)
        yield counter("streamer_live_changes", "Changed vendors, merged by tick.", index.changes)
        yield counter("streamer_frames", "Updates and snapshots written to customers.", ticker.frames)
        yield counter("streamer_frame_bytes", "Bytes of these updates and snapshots.", index.sent)
        yield counter("streamer_positions_delivered", "Positions in these updates and snapshots.", index.delivered)
        yield counter("streamer_frames_held_back", "Updates merged into a later one.", index.held_back)
        if parts.feed is not None:
            yield counter("streamer_feed_entries", "Entries written to the Redis Stream.", parts.feed.written)
            yield gauge("streamer_feed_pending", "Vendors with changes for the Redis Stream.", parts.feed.pending)
        if parts.mqtt is not None:
            yield gauge("streamer_mqtt_up", "1: connected to the broker and receiving.", parts.mqtt.cause is None)
            yield gauge("streamer_mqtt_waiting", "Messages that are not acked yet.", parts.mqtt.waiting)
            acked = {(result,): count for result, count in parts.mqtt.messages.items()}
            yield counts("streamer_mqtt_messages", "Messages acked to the broker.", ("result",), acked)

    def _alerts(self) -> Iterator[Metric]:
        evaluator, deliverer, counters = self._parts.evaluator, self._parts.deliverer, self._parts.counters
        if evaluator is None or deliverer is None:
            return
        yield gauge("streamer_alerts", "Alerts of all processes that are not disabled.", evaluator.total)
        yield gauge("streamer_alerts_disabled", "Alerts of all processes that are disabled.", evaluator.disabled)
        yield gauge("streamer_alerts_evaluated", "Alerts that this process evaluates.", len(evaluator.alerts))
        failed = "Alerts disabled because their webhooks failed for too long."
        yield counter("streamer_alerts_failed", failed, counters.alerts_disabled)
        yield gauge("streamer_alert_states_pending", "States of alerts that are not stored yet.", evaluator.pending)
        events = {(kind,): float(counters.alert_events[kind]) for kind in EVENTS}
        yield counts("streamer_alert_events", "Events of alerts that were stored.", ("event",), events)
        waiting = "Webhooks of all processes that are not delivered yet, at most 100,000."
        yield gauge("streamer_webhooks_waiting", waiting, evaluator.waiting)
        yield gauge("streamer_webhooks_oldest_seconds", "Age of the oldest of these.", evaluator.oldest)
        yield gauge("streamer_webhooks_running", "Requests that wait for an answer.", deliverer.running)
        results = {(kind,): float(counters.alert_deliveries[kind]) for kind in ("delivered", "failed", "given_up")}
        yield counts("streamer_webhook_requests", "Requests to receivers of webhooks.", ("result",), results)
        yield histogram("streamer_webhook_seconds", "Duration of these requests.", counters.alert_seconds)
        delay = "Time from an event to its delivery."
        yield histogram("streamer_webhook_delay_seconds", delay, counters.alert_delay)

    def _connections(self) -> Iterator[Metric]:
        connections, counters = self._parts.connections, self._parts.counters
        opened = {(kind,): float(counters.opened[kind]) for kind in ("vendor", "watch", "events")}
        open_now = dict(opened)
        for (kind, _), count in counters.closed.items():
            open_now[kind,] -= count
        closed = {
            (kind, "other" if code == OTHER_CODE else str(int(code))): count
            for (kind, code), count in counters.closed.items()
        }
        refused = {(code,): count for code, count in counters.refused.items()}
        requests = {(method, route, str(status)): count for (method, route, status), count in counters.requests.items()}
        yield gauges("streamer_connections", "Open WebSockets and event streams.", ("kind",), open_now)
        yield counts("streamer_connections_opened", "Opened WebSockets and event streams.", ("kind",), opened)
        yield counts("streamer_connections_closed", "Closed WebSockets and event streams.", ("kind", "code"), closed)
        yield gauge("streamer_slow_clients", "Clients with unread bytes at the last check.", connections.slow_clients)
        yield gauge("streamer_unread_bytes", "Bytes that clients have not read.", connections.unread_bytes)
        yield counts("streamer_messages_refused", "Messages answered with an error.", ("code",), refused)
        labels = ("method", "route", "status")
        yield counts("streamer_http_requests", "HTTP requests without WebSockets.", labels, requests)
        yield timed("streamer_http_seconds", "Duration of HTTP requests.", "route", counters.answered)


gauge, counter = GaugeMetricFamily, CounterMetricFamily
"""A metric without labels, by name, help and value; a counter is exported with the suffix `_total`."""


def gauges(
    name: str, help: str, labels: tuple[str, ...], values: Mapping[Labels, float], kind: Kind = GaugeMetricFamily
) -> Metric:
    """Returns a gauge with labels."""
    family = kind(name, help, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def counts(name: str, help: str, labels: tuple[str, ...], values: Mapping[Labels, float]) -> Metric:
    """Returns a counter with labels."""
    return gauges(name, help, labels, values, CounterMetricFamily)


def histogram(name: str, help: str, values: Histogram) -> Metric:
    """Returns a histogram."""
    return HistogramMetricFamily(name, help, buckets=buckets(values), sum_value=values.sum)


def timed(name: str, help: str, label: str, values: Mapping[str, Histogram]) -> Metric:
    """Returns a histogram with one label."""
    family = HistogramMetricFamily(name, help, labels=(label,))
    for what, each in values.items():
        family.add_metric((what,), buckets(each), each.sum)
    return family


def buckets(values: Histogram) -> list[tuple[str, float]]:
    """Returns a histogram's buckets in Prometheus' form."""
    return [("+Inf" if bound == inf else str(bound), float(count)) for bound, count in values.cumulative()]
