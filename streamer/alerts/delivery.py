"""Sends webhooks: claimed in PostgreSQL, so that any process can send them, but no two processes the same one.

A claim lasts slightly longer than a request may take; other processes then take over the claims of a killed process,
with the same `webhook-id`. The next webhook of an alert and vendor is claimed only when the previous one is done.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver

from streamer import __version__
from streamer.alerts.retry import GONE, next_attempt
from streamer.alerts.signing import Vault, headers
from streamer.alerts.url_check import check_url, is_development, is_public
from streamer.counters import Counters
from streamer.errors import DatabaseError, ProtocolError, SettingsError, Unavailable
from streamer.settings import Settings
from streamer.storage.alerts import AlertStore, Attempt, Claimed

log = structlog.get_logger()

LOOK_EVERY = 1.0
"""Seconds between two polls for webhooks of other processes and for those to be repeated."""
LEASE_GRACE = 5.0
"""Seconds that a claim lasts longer than a request may take."""
COLLECT = 0.05
"""Seconds for which results are collected to be stored together, and webhooks to be claimed together."""
MOST_READ = 4096
"""Bytes of an answer that are read, so that the connection can be reused; after a longer answer it is closed."""
FAILING_LOOK = 5
"""From this attempt on it is checked whether the alert has failed for too long."""


class NotPublic(OSError):
    """A receiver's name resolves to an address that is not public."""


class Deliverer:
    """One process's requests to receivers.

    Args:
        resolver: finds the addresses of hosts; the system's by default.
    """

    def __init__(
        self,
        settings: Settings,
        store: AlertStore,
        vault: Vault,
        clock: Callable[[], int],
        counters: Counters,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.running = 0
        """Requests that wait for an answer."""
        self._most = settings.alert_deliveries
        self._per_host = settings.alert_host_deliveries
        self._timeout = settings.alert_timeout
        self._disable_after = round(settings.alert_disable_after * 86_400_000)
        self._development = settings.alert_development_hosts
        self._store = store
        self._vault = vault
        self._clock = clock
        self._counters = counters
        self._resolver = resolver
        self._busy: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: list[Attempt] = []
        self._gone: dict[str, str] = {}
        """The URL that answered 410, by alert."""
        self._due = asyncio.Event()
        self._done = asyncio.Event()
        self._away = False

    def tasks(self) -> dict[str, Callable[[], Any]]:
        """The loops, by name, for the supervisor."""
        return {"webhooks": self.run, "webhook-outcomes": self.record}

    def due(self) -> None:
        """Polls for webhooks at once."""
        self._due.set()

    async def run(self) -> None:
        """Sends webhooks until cancelled."""
        lease = round((self._timeout + LEASE_GRACE) * 1000)
        guarded = self.session(public=True)
        development = self.session(public=False)
        try:
            while True:
                free = self._most - self.running
                claimed: list[Claimed] = []
                if free > 0:
                    try:
                        claimed = await self._store.claim(free, self._per_host, self._busy, lease)
                        self._away = False
                    except (Unavailable, DatabaseError) as away:
                        if not self._away:
                            log.warning("webhooks wait for PostgreSQL", cause=str(away))
                        self._away = True
                for webhook in claimed:
                    session = development if is_development(webhook.url, self._development) else guarded
                    self._start(session, webhook)
                if claimed and not self._away:
                    await asyncio.sleep(COLLECT)
                    continue  # there may be more, of other hosts
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._due.wait()
                self._due.clear()
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await guarded.close()
            await development.close()

    async def record(self) -> None:
        """Stores the results of requests until cancelled."""
        while True:
            await self._done.wait()
            await asyncio.sleep(COLLECT)
            self._done.clear()
            await self.store_outcomes()

    async def store_outcomes(self) -> None:
        """Stores the results so far; those that can't be stored now are kept."""
        outcomes, self._outcomes = self._outcomes, []
        if not outcomes:
            return
        try:
            await self._store.record(outcomes)
            for alert_id in {each.alert_id for each in outcomes if each.alert_id in self._gone}:
                if await self._store.disable(alert_id, "its receiver answered 410 Gone", url=self._gone[alert_id]):
                    log.info("an alert was disabled by its receiver", alert=alert_id)
                self._gone.pop(alert_id, None)
            late = {each.alert_id for each in outcomes if not each.delivered and each.attempts >= FAILING_LOOK}
            for alert_id in late:
                if await self._store.disable(alert_id, "its webhooks failed for too long", self._disable_after):
                    log.warning("an alert was disabled: its webhooks failed for too long", alert=alert_id)
                    self._counters.alerts_disabled += 1
        except (Unavailable, DatabaseError) as away:
            log.warning("results of webhooks wait for PostgreSQL", cause=str(away))
            self._outcomes = outcomes + self._outcomes
            await asyncio.sleep(LOOK_EVERY)
            self._done.set()
        # A recorded webhook may be followed by the next one of the same vendor.
        self._due.set()

    def _start(self, session: aiohttp.ClientSession, webhook: Claimed) -> None:
        self.running += 1
        self._busy[webhook.host] += 1
        task = asyncio.create_task(self._send(session, webhook), name="webhook")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, webhook.host))

    def _ended(self, task: asyncio.Task[None], host: str) -> None:
        self._tasks.discard(task)
        self.running -= 1
        self._busy -= Counter((host,))  # without those that have none left
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a webhook failed unexpectedly; it will be sent again", error=repr(error), exc_info=error)

    async def _send(self, session: aiohttp.ClientSession, webhook: Claimed) -> None:
        began = self._clock()
        clock = time.monotonic()
        status: int | None = None
        error: str | None = None
        retry_after: str | None = None
        try:
            check_url(webhook.url, self._development)
            signed = headers(self._vault.decrypt(webhook.secret), webhook.id, began // 1000, webhook.body)
            async with session.post(webhook.url, data=webhook.body, headers=signed, allow_redirects=False) as answer:
                status = answer.status
                retry_after = answer.headers.get("Retry-After")
                with suppress(aiohttp.ClientError, TimeoutError):
                    await answer.content.read(MOST_READ)
        except (ProtocolError, SettingsError) as refused:
            error = str(refused)
        except TimeoutError:
            error = f"no answer within {self._timeout:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as failed:
            error = reason(failed)
        took = time.monotonic() - clock
        delivered = status is not None and 200 <= status < 300
        now = self._clock()
        following: int | None = None
        if status == GONE:
            self._gone[webhook.alert_id] = webhook.url
        if not delivered:
            # Also after 410: if the alert has another URL meanwhile, the webhook is sent there.
            following = next_attempt(webhook.at, webhook.attempts, now, random.random(), retry_after)
        result = "delivered" if delivered else "given_up" if following is None else "failed"
        self._counters.alert_deliveries[result] += 1
        self._counters.alert_seconds.observe(took)
        if delivered:
            self._counters.alert_delay.observe(max(0.0, (now - webhook.at) / 1000))
        entry: dict[str, Any] = {"at": began, "ms": round(took * 1000)}
        if status is not None:
            entry["status"] = status
        if error is not None:
            entry["error"] = error[:300]
        self._outcomes.append(Attempt(webhook.id, webhook.alert_id, webhook.attempts, delivered, following, entry))
        self._done.set()

    def session(self, *, public: bool) -> aiohttp.ClientSession:
        """Returns an HTTP client; `public`: it connects only to addresses on the public internet."""
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=self._resolver,
            ttl_dns_cache=30,
            socket_factory=public_socket if public else None,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            headers={"Content-Type": "application/json", "User-Agent": f"venta-streamer/{__version__}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )


def public_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Returns a socket for an address; raises NotPublic before anything is sent to an address that is not public.

    The check is where the resolved address is used, so DNS rebinding cannot circumvent it.
    """
    family, kind, protocol, _, place = address
    if not is_public(str(place[0])):
        raise NotPublic("its host has an address that is not public")
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


def reason(error: BaseException) -> str:
    """Returns why a request failed, for the alert's owner."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NotPublic):
            return str(seen)
        seen = getattr(seen, "os_error", None) or seen.__cause__ or seen.__context__
    return f"{type(error).__name__}: {error}"
