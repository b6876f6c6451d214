"""Optional OpenTelemetry tracing: one span per batch, exported by the SDK's own thread."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from streamer import __version__
from streamer.errors import SettingsError
from streamer.ingest.batcher import Batch

MAX_QUEUED = 2048
"""Spans that wait for the collector; further ones are dropped."""
EXPORT_INTERVAL = 2.0
EXPORT_TIMEOUT = 5.0
CLOSE_TIMEOUT = 3.0


class Tracing:
    """Exports spans to an OTLP endpoint such as http://collector:4318/v1/traces.

    Raises:
        SettingsError: The OpenTelemetry library is not installed.
    """

    def __init__(self, endpoint: str, process: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise SettingsError(
                "STREAMER_OTLP_URL needs the OpenTelemetry library: install venta-streamer[tracing], or unset it"
            ) from None
        resource = Resource.create(
            {"service.name": "venta-streamer", "service.version": __version__, "service.instance.id": process}
        )
        # Not the library's global provider, as each server closes its own.
        self._provider: Any = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT),
                max_queue_size=MAX_QUEUED,
                schedule_delay_millis=EXPORT_INTERVAL * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("streamer", __version__)

    def batch(self, batch: Batch) -> None:
        """Records the span of a batch that has just been committed or given up."""
        ended = time.time_ns()
        span = self._tracer.start_span(
            "store batch",
            start_time=ended - int(batch.seconds * 1e9),
            attributes={
                "db.system.name": "postgresql",
                "streamer.pings": batch.pings,
                "streamer.messages": batch.messages,
                "streamer.rejected": batch.rejected,
                "streamer.attempts": batch.attempts,
                "streamer.waited_seconds": batch.waited,
            },
        )
        span.end(end_time=ended)

    async def close(self) -> None:
        """Exports the queued spans, bounded by CLOSE_TIMEOUT."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            return
