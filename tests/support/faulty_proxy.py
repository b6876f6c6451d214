"""A proxy in front of a real server that injects one fault at a time, to test that the load test finds it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from loadtest.clients.target import Target

STALL = 2.0


@dataclass(slots=True)
class Faults:
    """The proxy's faults, and `done`: those that it injected, for comparison with the findings.

    Connections are numbered by kind in the order of their arrival. Times are seconds since the first connection.
    """

    dropped: frozenset[int] = frozenset()
    """Pings, by number, that are dropped; the ack of the vendor's next one covers them."""
    late: frozenset[int] = frozenset()
    """Customers whose messages are `lateness` seconds late."""
    lateness: float = 0.15
    swaying: bool = False
    """Messages of all customers are 200 to 800 ms late, in waves of 2 s."""
    frozen: frozenset[int] = frozenset()
    """Customers that are shown an older position of one vendor."""
    never_left: frozenset[int] = frozenset()
    """Customers that get no `left`."""
    outside: frozenset[int] = frozenset()
    """Customers that are shown vendors outside of their circle."""
    stalls: frozenset[int] = frozenset()
    """Pings, by number, from which on no data is forwarded for 2 s."""
    cut: frozenset[int] = frozenset()
    """Customers whose connection ends without a close frame, and when."""
    cut_at: float = 3.0
    half_open: frozenset[int] = frozenset()
    """Customers whose connection stays open without data."""
    uncounted: frozenset[int] = frozenset()
    """Customers that are not sent the update of their counts in which a group first has `counted` vendors."""
    counted: int = 30
    malformed: frozenset[int] = frozenset()
    """Customers that get one update without its members."""
    lost_alerts: frozenset[int] = frozenset()
    """Webhooks, by number, that are answered 204 and dropped."""
    done: dict[str, list[Any]] = field(default_factory=dict)

    def note(self, name: str, what: Any) -> None:
        """Records an injected fault."""
        self.done.setdefault(name, []).append(what)


class FaultyProxy:
    """Forwards WebSockets and GET requests to `upstream`, with faults."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        self._upstream = upstream
        self._faults = faults
        self._began: float | None = None
        self._numbers = {"vendor": itertools.count(), "watch": itertools.count()}
        self._pings = 0
        self._stalled_until = 0.0
        self._webhooks = itertools.count()
        self._receiver = self._own = ""
        self._session: aiohttp.ClientSession

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began if self._began is not None else 0.0

    async def get(self, request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in ("Authorization",) if name in request.headers}
        async with self._session.get(f"{self._upstream}{request.path_qs}", headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read())

    async def alerts(self, request: web.Request) -> web.Response:
        """Forwards a request about alerts, whose webhooks are sent through this proxy."""
        body = await request.read()
        if request.method == "POST":
            asked = orjson.loads(body)
            self._receiver = asked["url"]
            body = orjson.dumps(asked | {"url": f"{self._own}/hook"})
        headers = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        async with self._session.request(
            request.method, f"{self._upstream}{request.path_qs}", data=body or None, headers=headers
        ) as answer:
            return web.Response(status=answer.status, body=await answer.read())

    async def webhook(self, request: web.Request) -> web.Response:
        body = await request.read()
        if next(self._webhooks) in self._faults.lost_alerts:
            event = orjson.loads(body)
            self._faults.note("alert", (event["vendor"]["vendorId"], event["alertId"], event["type"]))
            return web.Response(status=204)
        headers = {name: value for name, value in request.headers.items() if name.lower().startswith("webhook-")}
        async with self._session.post(self._receiver, data=body, headers=headers) as answer:
            return web.Response(status=answer.status)

    async def socket(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.rsplit("/", 1)[1]
        number = next(self._numbers[kind])
        if self._began is None:
            self._began = time.monotonic()
        headers = {"Authorization": request.headers["Authorization"]} if "Authorization" in request.headers else {}
        faulty = not (kind == "watch" and number in self._faults.half_open)
        down = web.WebSocketResponse(max_msg_size=0, autoping=faulty)
        async with self._session.ws_connect(
            f"{self._upstream}{request.path_qs}", headers=headers, max_msg_size=0
        ) as up:
            await down.prepare(request)
            tasks = [
                asyncio.create_task(self._upward(kind, number, request, down, up)),
                asyncio.create_task(self._downward(kind, number, request, down, up)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return down

    async def _upward(
        self,
        kind: str,
        number: int,
        request: web.Request,
        down: web.WebSocketResponse,
        up: aiohttp.ClientWebSocketResponse,
    ) -> None:
        faults = self._faults
        async for message in down:
            if message.type is not WSMsgType.TEXT:
                continue
            await self._stalled()
            text = message.data
            if kind == "vendor" and text.startswith('{"type":"ping"'):
                self._pings += 1
                if self._pings in faults.stalls:
                    self._stalled_until = self._now + STALL
                if self._pings in faults.dropped:
                    faults.note("dropped", (request.query["vendorId"], orjson.loads(text)["timestamp"]))
                    continue
            elif kind == "watch" and number in faults.outside:
                watch = orjson.loads(text)
                if "area" in watch:
                    watch["area"]["radius"] *= 1.5
                text = orjson.dumps(watch).decode()
            await up.send_str(text)

    async def _downward(
        self,
        kind: str,
        number: int,
        request: web.Request,
        down: web.WebSocketResponse,
        up: aiohttp.ClientWebSocketResponse,
    ) -> None:
        faults = self._faults
        watching = kind == "watch"
        late: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        delayed = watching and (faults.swaying or number in faults.late)
        sending = asyncio.create_task(self._send_late(late, down)) if delayed else None
        victim: str | None = None
        try:
            async for message in up:
                if message.type is not WSMsgType.TEXT:
                    continue
                await self._stalled()
                text = message.data
                if watching and self._now > faults.cut_at:
                    if number in faults.cut:
                        faults.note("cut", number)
                        assert request.transport is not None
                        request.transport.abort()
                        return
                    if number in faults.half_open:
                        faults.note("half-open", number)
                        await asyncio.sleep(3600)
                    if number in faults.malformed and "malformed" not in faults.done:
                        faults.note("malformed", number)
                        text = '{"type":"update","id":"map","moved":[{"vendorId":7}]}'
                skips = number in faults.uncounted and number not in faults.done.get("uncounted", ())
                if watching and skips and self._counts(text):
                    faults.note("uncounted", number)
                    continue
                if watching and number in faults.never_left and '"left"' in text:
                    update = orjson.loads(text)
                    if update.pop("left", None):
                        faults.note("left", number)
                    text = orjson.dumps(update).decode()
                if watching and number in faults.frozen and '"moved"' in text and self._now > faults.cut_at:
                    update = orjson.loads(text)
                    if victim is None:
                        victim = update["moved"][0]["vendorId"]
                        faults.note("frozen", victim)
                    update["moved"] = [fix for fix in update["moved"] if fix["vendorId"] != victim]
                    text = orjson.dumps(update).decode()
                if sending is not None:
                    now = time.monotonic()
                    lateness = 0.5 + 0.3 * math.sin(math.pi * now) if faults.swaying else faults.lateness
                    late.put_nowait((now + lateness, text))
                else:
                    await down.send_str(text)
            await down.close(code=up.close_code or 1000)
        finally:
            if sending is not None:
                sending.cancel()

    def _counts(self, text: str) -> bool:
        """Whether this is the update to leave out."""
        if not text.startswith('{"type":"update","id":"counts"'):
            return False
        return any(group["count"] == self._faults.counted for group in orjson.loads(text)["groups"])

    async def _stalled(self) -> None:
        await asyncio.sleep(max(0.0, self._stalled_until - self._now))

    @staticmethod
    async def _send_late(late: asyncio.Queue[tuple[float, str]], down: web.WebSocketResponse) -> None:
        while True:
            due, text = await late.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await down.send_str(text)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Target]:
        """Listens while the block runs."""
        app = web.Application()
        app.router.add_get("/v1/vendor", self.socket)
        app.router.add_get("/v1/watch", self.socket)
        for method in ("GET", "POST", "DELETE"):
            app.router.add_route(method, "/v1/alerts{rest:.*}", self.alerts)
        app.router.add_post("/hook", self.webhook)
        app.router.add_get("/{path:.*}", self.get)
        connector = aiohttp.TCPConnector(limit=0)  # a hundred customers or more
        async with (
            aiohttp.ClientSession(connector=connector) as self._session,
            TestServer(app, host="127.0.0.1") as server,
        ):
            assert server.port is not None
            self._own = f"http://127.0.0.1:{server.port}"
            yield Target("127.0.0.1", server.port, False)
