"""Alerts of a run: created before it begins, their webhooks received, and all of them deleted at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from random import Random
from typing import Any, Self, TypeVar

import aiohttp
import orjson
from aiohttp import web

from loadtest import RunFailed
from loadtest.clients.target import Identity, mint
from loadtest.engine.alert_auditor import AlertAuditor
from loadtest.engine.population import Plan
from loadtest.measure.recording import Histogram
from streamer.geo.shapes import Circle
from venta_client.webhooks import WebhookRefused, verify

AT_ONCE = 16
BEGUN_WITHIN = 120.0
LOOK_EVERY = 0.25
QUIET = 2.0
"""Seconds between two checks for outstanding webhooks."""
EVENTS = ["entered", "left"]
FATAL = (400, 401, 403, 404, 422)

T = TypeVar("T")
U = TypeVar("U")


class Alerts:
    """The alerts of one machine's part of a run, and the receiver of their webhooks; an async context manager.

    What vendors' workers report as acked goes to `auditor`, which is there after `begin`.
    """

    def __init__(self, plan: Plan) -> None:
        self.auditor: AlertAuditor | None = None
        self._plan, self._scenario, self._identities = plan, plan.scenario, plan.identities
        self._secrets: dict[str, str] = {}
        self._owners: dict[str, Identity] = {}
        self._offset = 0.0
        self._url = ""

    async def __aenter__(self) -> Self:
        host, _, port = self._scenario.alerts.listen.rpartition(":")
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as failed:
            await self._runner.cleanup()
            raise RunFailed(f"the receiver can't listen on {self._scenario.alerts.listen}: {failed}") from None
        self._url = f"http://{host}:{self._runner.addresses[0][1]}/hook"
        self._session = aiohttp.ClientSession(self._plan.target.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await each(self._owners.items(), self._delete)
        finally:
            await self._session.close()
            await self._runner.cleanup()

    async def begin(self, offset: float) -> None:
        """Creates the alerts and waits until all have started; `offset` is the server's clock minus ours, in ms."""
        self._offset = offset
        wanted, random = self._scenario.alerts, Random(f"{self._plan.seed} alerts")
        city = self._scenario.disc.wider(wanted.spread)
        made = []
        for number in range(wanted.count):
            lat, long = city.degrees(*city.anywhere(random))
            circle = Circle(lat, long, round(random.uniform(*wanted.radius)))
            made.append((self._identities[number % len(self._identities)], circle))
        circles = dict(await each(made, self._create))
        seen = await each(self._identities, self._on_map)
        self.auditor = AlertAuditor(
            circles,
            [one.vendor_id for one in self._identities],
            {vendor_id for vendor_id in seen if vendor_id is not None},
            wanted.stay_ms,
            wanted.late_ms,
        )
        await each(self._owners.items(), self._begun)

    def acked(self, report: dict[str, Any]) -> None:
        """Takes in what a vendors' worker reports as acked."""
        if self.auditor is not None:
            self.auditor.acked(report["pings"], self._now())
            self.auditor.forget(self._identities[vendor].vendor_id for vendor in report["unsure"])

    async def judged(self, unsure: Iterable[str]) -> dict[str, Any]:
        """Waits for outstanding webhooks; returns the check, which leaves out the vendors in `unsure`."""
        assert self.auditor is not None
        self.auditor.forget(unsure)
        settled = self._now()
        until = settled + self._scenario.alerts.late_ms
        await asyncio.sleep(QUIET)  # for webhooks that should not come
        check = self.auditor.judge(settled)
        while check["missed"] and self._now() < until:
            await asyncio.sleep(QUIET)
            check = self.auditor.judge(settled)
        return check

    def delays(self) -> dict[str, Histogram]:
        """Returns how long after its ping each webhook came."""
        return {"alert": self.auditor.delays} if self.auditor is not None and len(self.auditor.delays) else {}

    # inside

    def _now(self) -> float:
        return time.time() * 1000 + self._offset

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        now = self._now()
        if self.auditor is None:
            return web.Response(status=503)
        try:
            alert_id = orjson.loads(body)["alertId"]
            verify(self._secrets[alert_id], request.headers, body, now=now / 1000)
        except (orjson.JSONDecodeError, KeyError, TypeError, WebhookRefused) as refused:
            self.auditor.refuse(f"{request.headers.get('webhook-id')} was not signed by the server: {refused!r}", now)
            return web.Response(status=400)
        self.auditor.take(request.headers["webhook-id"], orjson.loads(body), now)
        return web.Response(status=204)

    async def _create(self, wanted: tuple[Identity, Circle]) -> tuple[str, Circle]:
        owner, circle = wanted
        area = {"center": {"lat": circle.lat, "long": circle.long}, "radius": circle.radius}
        asked = {"area": area, "on": EVENTS, "quiet": 0, "url": self._url}
        answered = await self._request("POST", "/v1/alerts", owner, asked)
        self._secrets[answered["id"]] = answered["secret"]
        self._owners[answered["id"]] = owner
        return answered["id"], circle

    async def _begun(self, alert: tuple[str, Identity]) -> None:
        until = time.monotonic() + BEGUN_WITHIN
        while "startedAt" not in await self._request("GET", f"/v1/alerts/{alert[0]}", alert[1]):
            if time.monotonic() > until:
                raise RunFailed(f"the alert {alert[0]} did not start within {BEGUN_WITHIN:g} s; read the server's log")
            await asyncio.sleep(LOOK_EVERY)

    async def _delete(self, alert: tuple[str, Identity]) -> None:
        with suppress(RunFailed):  # the server is gone, or the alert is
            await self._request("DELETE", f"/v1/alerts/{alert[0]}", alert[1])

    async def _on_map(self, identity: Identity) -> str | None:
        """Returns the vendor's id when it is on the map already."""
        found = await self._request("GET", f"/v1/vendors/{identity.vendor_id}", identity, known=404)
        return identity.vendor_id if found else None

    async def _request(
        self, method: str, path: str, owner: Identity, body: dict[str, Any] | None = None, known: int = 0
    ) -> dict[str, Any]:
        """Returns the answer, an empty one for the status `known`; tries for some seconds what may pass."""
        pause = 0.2
        while True:
            token = mint(owner.clerk_id, self._plan.secret, time.time(), self._scenario.token_lifetime)
            try:
                async with self._session.request(
                    method, path, json=body, headers={"Authorization": f"Bearer {token}"}
                ) as answer:
                    if answer.status == known or answer.status == 204:
                        return {}
                    answered: dict[str, Any] = await answer.json(content_type=None)
                    if answer.ok:
                        return answered
                    said = f"{answer.status} {answered.get('code')}: {answered.get('detail')}"
                    fatal = answer.status in FATAL
            except (aiohttp.ClientError, OSError, orjson.JSONDecodeError) as failed:
                said, fatal = repr(failed), False
            if fatal or pause > 5:
                raise RunFailed(
                    f"{method} {path} was answered {said}. Alerts need STREAMER_ALERT_KEY, and "
                    f"STREAMER_ALERT_DEVELOPMENT_HOSTS with {self._scenario.alerts.listen.rpartition(':')[0]}"
                )
            await asyncio.sleep(pause)
            pause *= 2


async def each(items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, U]]) -> list[U]:
    """Does the same for each, some at once; returns the results in order."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> U:
        async with free:
            return await work(item)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item)) for item in items]
    return [task.result() for task in tasks]
