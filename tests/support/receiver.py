"""A receiver of webhooks for tests: verifies all signatures, and answers as the test specifies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import orjson
from aiohttp import web

from tests.support.apps import eventually


class Received(NamedTuple):
    """One request; `status` is the answer's."""

    id: str
    event: dict[str, Any]
    status: int
    at: float


class Receiver:
    """Listens on a port of this machine; `secrets` are those of the alerts, by their ids."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}
        self.received: list[Received] = []
        self.faults: list[str] = []
        self.answer: Callable[[dict[str, Any]], int] = lambda _: 204
        self.headers: dict[str, str] = {}
        self.hold: asyncio.Event | None = None
        """No request is answered until it is set."""
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def host(self) -> str:
        """Its value in STREAMER_ALERT_DEVELOPMENT_HOSTS."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.hold is not None:
            self.hold.set()
        assert self._runner is not None
        await self._runner.cleanup()
        assert self.faults == []

    async def listen(self) -> None:
        """Listens, again on the same port after `deaf`."""
        assert self._runner is not None
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def deaf(self) -> None:
        """Stops listening and closes its connections, like a process that ends: new ones are refused."""
        assert self._runner is not None
        assert self._runner.server is not None
        for site in list(self._runner.sites):
            await site.stop()
        await self._runner.server.shutdown(0.1)

    def events(self, alert_id: str | None = None) -> list[dict[str, Any]]:
        """Returns the accepted events without duplicates, in the order of their first arrival."""
        found: dict[str, dict[str, Any]] = {}
        for each in self.received:
            if 200 <= each.status < 300 and alert_id in (None, each.event["alertId"]):
                found.setdefault(each.id, each.event)
        return list(found.values())

    def kinds(self, alert_id: str | None = None) -> list[str]:
        """Returns the types of these events, without `vendor.`."""
        return [event["type"].removeprefix("vendor.") for event in self.events(alert_id)]

    async def gets(self, *kinds: str, alert_id: str | None = None) -> None:
        """Waits until exactly these events were accepted, in this order."""
        await eventually(lambda: self.kinds(alert_id) == list(kinds), f"webhooks {kinds}, not {self.kinds(alert_id)}")

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        id, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        event = orjson.loads(body)
        secret = self.secrets.get(event["alertId"])
        if secret is None:
            self.faults.append(f"no secret is known for {event}")
        else:
            key = b64decode(secret.removeprefix("whsec_"))
            signed = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
            if request.headers["webhook-signature"] != "v1," + b64encode(signed).decode():
                self.faults.append(f"the signature of {id} is wrong")
        if abs(int(timestamp) - time.time()) > 30:
            self.faults.append(f"the timestamp of {id} is {timestamp}")
        if self.hold is not None:
            await self.hold.wait()
        status = self.answer(event)
        self.received.append(Received(id, event, status, time.monotonic()))
        return web.Response(status=status, headers=self.headers)
