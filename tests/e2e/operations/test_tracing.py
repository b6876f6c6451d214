"""Traces for a collector: one span per batch; a collector that is down must not slow the server."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from streamer.errors import SettingsError
from streamer.operations.tracing import Tracing
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import VendorApp, eventually, now_ms


class Collector:
    """An OTLP collector on a real socket."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        elif request.headers.get("Content-Encoding") == "deflate":
            body = zlib.decompress(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in group.resource.attributes})
            for scope in group.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")


@pytest.fixture
async def collector(unused_tcp_port: int) -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    yield collector, f"http://127.0.0.1:{unused_tcp_port}/v1/traces"
    await runner.cleanup()


async def test_one_span_for_each_batch(serve: Serve, database_url: str, collector: tuple[Collector, str]) -> None:
    """There are as many spans as batches, with the right number of pings and the times of the commits."""
    vendor = (await seed.seed(database_url, 1))[0]
    running = await serve(otlp_url=collector[1])
    async with VendorApp(running.url, vendor.clerk_id) as app:
        for seq in range(1, 6):
            await app.ping(52, 21)
            await app.acked(seq)
        await app.send({"type": "pings", "pings": [{"lat": 52, "long": 21, "timestamp": now_ms() - 3_600_000}] * 1})
        await app.acked(6)
    spans = collector[0].spans
    batcher = running.server.batcher
    await eventually(lambda: len(spans) == running.server.counters.batches.count, "a span for each batch", within=20)
    attributes = [{each.key: each.value for each in span.attributes} for span in spans]
    assert sum(each["streamer.pings"].int_value for each in attributes) == batcher.settled_pings == 6
    assert {each["streamer.attempts"].int_value for each in attributes} == {1}
    assert {span.name for span in spans} == {"store batch"}
    assert all(0 <= span.end_time_unix_nano - span.start_time_unix_nano < 60e9 for span in spans)
    assert len({span.trace_id for span in spans}) == len(spans)
    assert collector[0].resources[0]["service.name"] == "venta-streamer"
    assert collector[0].resources[0]["service.instance.id"] == running.server.process


async def test_a_collector_that_is_away(serve: Serve, database_url: str, unused_tcp_port: int) -> None:
    """Vendors are served normally, and the server stops within its time limit."""
    vendor = (await seed.seed(database_url, 1))[0]
    running = await serve(otlp_url=f"http://127.0.0.1:{unused_tcp_port}/v1/traces")
    async with VendorApp(running.url, vendor.clerk_id) as app:
        await app.ping(52, 21)
        await app.acked(1)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is an extra: without it the error names what to install."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"venta-streamer\[tracing\]"):
        Tracing("http://127.0.0.1:1/v1/traces", "me")
