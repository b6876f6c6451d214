"""Creates, starts and stops all parts of a server process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from streamer.accounts.change_poller import ChangePoller
from streamer.accounts.dataloader import DataLoader
from streamer.accounts.entitlements import Entitlements
from streamer.accounts.jwks import IssuerKeys
from streamer.accounts.sign_in import SignInLinks
from streamer.accounts.tokens import Authenticator, rules_of
from streamer.alerts.delivery import Deliverer
from streamer.alerts.signing import Vault
from streamer.broker.broker import Broker
from streamer.broker.context import BrokerConfig
from streamer.broker.stream import Feed, Status
from streamer.broker.subscriptions import Subscriptions
from streamer.cadence import COMMITS, TICKS, Cadence, Utilisation
from streamer.counters import Counters
from streamer.errors import DatabaseError, Unavailable
from streamer.ingest.batcher import Batcher, Chunk
from streamer.ingest.position_writer import PositionWriter
from streamer.live.index import LiveIndex
from streamer.live.ticker import Ticker
from streamer.live.visibility import Visibility
from streamer.operations.admin import operators_only
from streamer.operations.backup.files import Backups
from streamer.operations.clock_check import ClockCheck
from streamer.operations.health import Health
from streamer.operations.loop_lag import LoopLag
from streamer.operations.metrics import Metrics
from streamer.operations.tracing import Tracing
from streamer.operations.workers.peers import Peers
from streamer.settings import Settings
from streamer.storage.alerts import AlertStore
from streamer.storage.store import Store
from streamer.supervisor import Supervisor
from streamer.transport.admission import Admission, limiting_reads
from streamer.transport.connection import ConnectionRegistry
from streamer.transport.cors import Cors
from streamer.transport.http_alerts import HttpAlerts
from streamer.transport.http_ingest import HttpIngest
from streamer.transport.http_query import HttpQuery
from streamer.transport.problem import MAX_BODY, answering
from streamer.transport.services import Services
from streamer.transport.slow_clients import SlowClients
from streamer.transport.sse import EventStreams
from streamer.transport.websocket_server import WebSocketServer
from streamer.web.api_docs import ApiDocs
from streamer.web.backends import BackendEndpoints
from streamer.web.pages import Pages
from streamer.web.static import CLIENT, client_folder, serve_files

if TYPE_CHECKING:
    from streamer.alerts.evaluator import Evaluator
    from streamer.transport.mqtt import MqttBridge

log = structlog.get_logger()

PARTITION_CHECK = 3600.0
TRY_AGAIN = 5.0
"""Seconds between retries of partitions and positions that the database refused."""
RECONCILE_BACK = 7 * 86_400_000
"""Longest outage of all processes, in ms, after which vendors' positions are brought up to date at the start."""
TIE_WAIT = 2.0
"""Seconds in which a process should detect by itself that its ping is a duplicate."""
MOST_TIES = 10_000
BEAT = 0.5
"""Seconds between two heartbeats of a worker."""
OTHER_CONNECTIONS = 2000
"""Connections other than WebSockets and streams; beyond this, one that sends no request at once is closed."""
MIN_STORE_TIME = 0.5
"""Minimum number of seconds of a drain in which buffered pings are stored, however long the clients took to leave."""


def clock() -> int:
    """Returns the time in epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Server:
    """One server process; `app` is its aiohttp application."""

    def __init__(
        self, settings: Settings, store: Store, counters: Counters | None = None, peers: Peers | None = None
    ) -> None:
        self.settings = settings
        self.counters = counters = counters or Counters()
        self.store = store
        self.process = secrets.token_hex(4)
        self.peers = peers
        self._ties: set[tuple[str, int]] = set()
        """Vendors and timestamps for which two different pings were published."""
        self._tied = asyncio.Event()
        self.index = LiveIndex(
            self.process,
            offline_after=int(settings.offline_after * 1000),
            leave_after=int(settings.leave_after * 1000),
            visibility=Visibility.of(settings.show_closed, settings.show_offline, settings.closed_grid),
            rest_share=settings.heavy_cost / 1000 / 2,  # in addition to heavy clients' messages and reads
        )
        ticks = replace(TICKS, ceiling=max(TICKS.floor, settings.frame_interval / 1000))
        utilisation = Utilisation()
        self.ticker = Ticker(self.index, clock, Cadence(ticks, utilisation))
        self.connections = ConnectionRegistry(settings, clock, counters)
        assert settings.redis_url is not None
        self.broker = Broker(
            BrokerConfig(settings.redis_url.get_secret_value(), utilisation=utilisation),
            self.index,
            clock,
            handler=self,
            counters=counters,
        )
        self.entitlements = (
            Entitlements(store, self.broker, clock, settings.free_interval) if settings.free_interval else None
        )
        if self.entitlements is not None:
            self.broker.local_vendors.shows = self.entitlements.shows
        self.watches = Subscriptions(self.index, self.broker, clock)
        self.feed = (
            Feed(
                self.broker.run,
                self._statuses,
                self.process,
                clock,
                key=settings.feed_key,
                length=settings.feed_length,
                interval=settings.feed_interval,
            )
            if settings.feed == "on"
            else None
        )
        self.tracing = Tracing(settings.otlp_url, self.process) if settings.otlp_url is not None else None
        self.positions = PositionWriter(store.update_positions, interval=settings.position_interval)
        self.batcher = Batcher(
            store.pings.store,
            max_pings=settings.buffer_pings,
            max_bytes=settings.buffer_bytes,
            batch_pings=settings.batch_pings,
            cadence=Cadence(COMMITS, utilisation),
            stored=self._stored,
            traced=None if self.tracing is None else self.tracing.batch,
            counters=counters,
        )
        self.change_poller = ChangePoller(
            store, self.broker.local_vendors, self.index, clock, self, interval=settings.change_poll_interval
        )
        self.keys = IssuerKeys(settings.jwks_url) if settings.jwks_url is not None else None
        given = (settings.jwt_secret, settings.jwt_secret_previous)
        shared = [secret.get_secret_value() for secret in given if secret is not None]
        self.authenticator = Authenticator(shared, self.keys, rules_of(settings), self.change_poller.deleted_users)
        self.dataloader = DataLoader(store)
        self.admission = Admission(settings, self.connections, lag=lambda: self.loop_lag.late)
        services = Services(
            settings=settings,
            connections=self.connections,
            admission=self.admission,
            authenticator=self.authenticator,
            counters=counters,
            clock=clock,
            store=store,
            dataloader=self.dataloader,
            batcher=self.batcher,
            local_vendors=self.broker.local_vendors,
            change_poller=self.change_poller,
            vendors_deleted=self.vendors_deleted,
            subscriptions=self.watches,
            changed=self.ticker.changed,
        )
        self.sockets = WebSocketServer(services)
        self.events = EventStreams(services)
        self.http = HttpQuery(services)
        self.reports = HttpIngest(services)
        keys = [key.get_secret_value() for key in (settings.alert_key, settings.alert_key_previous) if key is not None]
        vault = Vault(keys) if settings.alert_key is not None else None
        alert_store = AlertStore(store.database)
        self.deliverer = None if vault is None else Deliverer(settings, alert_store, vault, clock, counters)
        self.evaluator: Evaluator | None = None
        if self.deliverer is not None:
            # Imported only when needed, as numpy takes much memory.
            from streamer.alerts.evaluator import Evaluator

            self.evaluator = Evaluator(
                self.process, alert_store, self.index, self.broker, clock, counters, self.deliverer.due
            )
        self.alert_store = alert_store
        self.alerts_api = HttpAlerts(
            settings, alert_store, self.authenticator, clock, vault, self.evaluator, self.deliverer
        )
        self.backends = BackendEndpoints(
            settings,
            SignInLinks(
                shared,
                self.broker.run,
                self.dataloader,
                min(settings.sign_in_life, settings.jwt_max_lifetime or settings.sign_in_life),
                rules_of(settings).claims,
            ),
            clock,
        )
        self.pages = Pages(settings, clock)
        self.supervisor = Supervisor()
        self.loop_lag = LoopLag(counters)
        self.mqtt: MqttBridge | None = None
        self.clock_check = ClockCheck({"postgresql": store.now, "redis": self.broker.now}, clock)
        self.backups = Backups(settings.backup_dir) if settings.backup_dir is not None else None
        self.health = Health(self)
        self.metrics = Metrics(self, self.health)
        self.slow_clients = SlowClients(
            settings.handshake_timeout, settings.request_timeout, settings.max_connections + OTHER_CONNECTIONS
        )
        self.admin_url: str | None = None
        self.admin = web.Application()
        """The operators' endpoints, for STREAMER_ADMIN_PORT and for the other workers."""
        self.app = web.Application(
            middlewares=[self.slow_clients.through, answering(counters, self.process), limiting_reads(self.admission)],
            client_max_size=MAX_BODY,
        )
        self._add_routes()

    def _add_routes(self) -> None:
        settings, health = self.settings, self.health
        liveness = [web.get("/livez", health.livez), web.get("/readyz", health.readyz)]
        self.admin.add_routes([*liveness, web.get("/health", health.health), web.get("/metrics", self.metrics.metrics)])
        self.app.add_routes(
            [
                *self.pages.routes(),
                *ApiDocs(settings).routes(),
                web.get("/client/{name}", serve_files(client_folder(), CLIENT, {"Access-Control-Allow-Origin": "*"})),
                *liveness,
                web.get("/v1/vendor", self.sockets.vendor),
                web.get("/v1/watch", self.sockets.watch),
                web.get("/v1/watch/events", self.events.watch, allow_head=False),
                web.post("/v1/sign-in-links", self.backends.create_link),
                web.post("/v1/sign-in", self.backends.exchange),
                web.post("/v1/erasures", self.backends.erase),
                web.get("/v1/vendors", self.http.search),
                web.get("/v1/vendors/nearby", self.http.nearby),
                web.get("/v1/vendors/counts", self.http.counts),
                web.get("/v1/vendors/{id}", self.http.card),
                web.get("/v1/vendors/{id}/locations", self.http.history),
                web.post("/v1/vendors/{id}/locations", self.reports.locations),
                *self.alerts_api.routes(),
                web.post("/v1/owntracks", self.reports.owntracks),
                # A HEAD would store a ping.
                web.get("/v1/osmand", self.reports.osmand, allow_head=False),
                web.post("/v1/osmand", self.reports.osmand),
            ]
        )
        if settings.admin_port is None:
            token = settings.admin_token.get_secret_value() if settings.admin_token is not None else None
            self.app.router.add_get("/health", operators_only(health.health, token))
            self.app.router.add_get("/metrics", operators_only(self.metrics.metrics, token))
        Cors(settings.origins).join(self.app)

    async def start(self) -> None:
        """Starts the long-lived tasks."""
        self.supervisor.start(
            {
                "batcher": self.batcher.run,
                "positions": self.positions.run,
                "ticker": self.ticker.run,
                "expire": lambda: self.ticker.expire(self.broker.drop_expired),
                "heartbeat": self.connections.heartbeat,
                "partitions": self._keep_partitions,
                "change-poller": self.change_poller.run,
                **({} if self.keys is None else {"jwks": self.keys.run}),
                **({} if self.entitlements is None else {"entitlements": self.entitlements.run}),
                "loop-lag": self.loop_lag.run,
                "clock": self.clock_check.run,
                "ties": self._settle_ties,
                "database-condition": self.health.watch,
                **({} if self.feed is None else {"feed": self.feed.run}),
                **({} if self.evaluator is None else self.evaluator.tasks()),
                **({} if self.deliverer is None else self.deliverer.tasks()),
                **({} if self.backups is None else {"backups": self.backups.run}),
                **self.broker.tasks(),
            }
        )

    async def drain(self) -> None:
        """Stops admission, closes connections after acks and `bye`, and stores buffered pings, within a time limit."""
        until = asyncio.get_running_loop().time() + self.settings.drain_timeout
        self.connections.draining = True
        await self.connections.drain(self.settings.drain_timeout)
        left = until - asyncio.get_running_loop().time()
        if not await self.batcher.drain(max(MIN_STORE_TIME, left)):
            log.error(
                "stopped with pings not stored and not acked; their apps will resend them", pings=self.batcher.pings
            )

    async def stop(self) -> None:
        """Stops everything, after `drain`."""
        self.batcher.close()
        if self.evaluator is not None:
            await self.evaluator.leave()
        await self.supervisor.stop()
        if self.deliverer is not None:
            await self.deliverer.store_outcomes()
        if not await self.positions.close():
            log.warning("vendors.lat/long are behind; the next start updates them", cause=self.positions.outage)
        if self.feed is not None:
            await self.feed.close()
        await self.health.close()
        if self.tracing is not None:
            await self.tracing.close()
        await self.pages.close()
        await self.broker.close()
        await self.store.database.close()

    async def beat(self) -> None:
        """Sends heartbeats to the other workers, with the tasks that failed, until cancelled."""
        assert self.peers is not None
        while True:
            self.peers.beat("; ".join(f"{task}: {why}" for task, why in self.supervisor.failures.items()))
            await asyncio.sleep(BEAT)

    async def _warn_of_alerts(self) -> None:
        """Warns if there are alerts that this process cannot evaluate."""
        if self.evaluator is None and (waiting := (await self.alert_store.counts())[0]):
            log.warning("alerts are off here: set STREAMER_ALERT_KEY to the key of the other processes", alerts=waiting)

    async def _keep_partitions(self) -> None:
        reconciled = False
        while True:
            wait = PARTITION_CHECK
            try:
                today = datetime.now(UTC).date()
                if created := await self.store.ensure_partitions(today, self.settings.partitions_ahead):
                    log.info("created partitions", partitions=created)
            except (Unavailable, DatabaseError) as away:
                log.warning("partitions could not be created; trying again", cause=str(away))
                wait = TRY_AGAIN
            try:
                if not reconciled:
                    # A process killed between a commit and the merged update left vendors.lat/long behind.
                    await self.store.reconcile_positions(clock() - RECONCILE_BACK)
                    reconciled = True
                    await self._warn_of_alerts()
            except (Unavailable, DatabaseError) as away:
                log.warning("vendors.lat/long could not be brought up to date; trying again", cause=str(away))
                wait = TRY_AGAIN
            await asyncio.sleep(wait)

    async def _settle_ties(self) -> None:
        """Publishes the stored ping, in case the process that published another one is killed before it does so."""
        while True:
            await self._tied.wait()
            await asyncio.sleep(TIE_WAIT)
            ties, self._ties = self._ties, set()
            self._tied.clear()
            try:
                stored = await self.store.positions_at(ties)
            except (Unavailable, DatabaseError):
                self._ties |= ties
                self._tied.set()
                continue
            for (vendor_id, timestamp), position in stored.items():
                self.broker.correct(vendor_id, timestamp, *position)

    # AccountEvents

    def vendors_deleted(self, vendor_ids: Collection[str]) -> None:
        """Takes deleted vendors off every map and ends their connections."""
        for vendor_id in vendor_ids:
            self.broker.local_vendors.delete(vendor_id)
            self.broker.mark_gone(vendor_id)
        self.connections.end_vendors(vendor_ids)

    def vendors_owned(self, owners: Mapping[str, str]) -> None:
        """Ends the connections of former owners."""
        self.connections.end_former_owners(owners)

    def users_deleted(self, clerk_ids: Collection[str]) -> None:
        """Ends the connections of deleted users."""
        self.connections.end_users(clerk_ids)

    # BrokerEventHandler

    def on_index_changed(self) -> None:
        """Schedules the next tick."""
        self.ticker.changed()

    def on_gap(self, cells: frozenset[int], vendor_ids: frozenset[str]) -> None:
        """Sends snapshots to the watches that may have missed changes."""
        self.watches.gap(cells, vendor_ids)
        self.ticker.changed()

    def on_tie(self, vendor_id: str, timestamp: int) -> None:
        """Shows the stored one of two pings with the same timestamp."""
        if len(self._ties) < MOST_TIES:
            self._ties.add((vendor_id, timestamp))
            self._tied.set()

    def on_vendor_deleted(self, vendor_id: str) -> None:
        """Closes the sockets of a vendor that another process found deleted."""
        self.connections.end_vendors((vendor_id,))

    def _stored(self, chunk: Chunk) -> None:
        """Called with committed pings."""
        self.positions.note(chunk.vendor_id, chunk.newest)
        if chunk.corrected:
            self.broker.correct(chunk.vendor_id, *chunk.newest[:3])
        if self.feed is not None:
            self.feed.position(chunk.vendor_id, chunk.newest)

    def _statuses(self) -> Iterator[Status]:
        """Returns the statuses of the vendors that this process serves and that are on the map."""
        vendors = self.index.vendors
        for vendor_id in self.broker.local_vendors.sockets:
            vendor = vendors.get(vendor_id)
            if vendor is not None and vendor.live:
                yield vendor_id, vendor.card.open, vendor.online
