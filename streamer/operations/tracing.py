"""OpenTelemetry, optional: one span for each batch, sent to a collector by a thread of the library's own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from streamer import __version__
from streamer.errors import SettingsError
from streamer.ingest.batcher import Batch

MOST_WAITING = 2048
"""Spans that wait for the collector; more are dropped."""
EXPORT_EVERY = 2.0
EXPORT_WITHIN = 5.0
CLOSE_WITHIN = 3.0


class Tracing:
    """Sends spans to an OTLP endpoint (`http://collector:4318/v1/traces`); SettingsError without the library."""

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
        # Not the library's global one: each server has its own, and lets it go.
        self._provider: Any = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_WITHIN),
                max_queue_size=MOST_WAITING,
                schedule_delay_millis=EXPORT_EVERY * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("streamer", __version__)

    def batch(self, batch: Batch) -> None:
        """A batch was settled just now."""
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
        """Send what waits, for a moment, and let go."""
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            return
