"""Admission control: which connections that stay (WebSockets, event streams) may be opened, and when; and reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from streamer.cpu_time import measured
from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.cost import ClientCost, CostBudgets, CostLimits
from streamer.settings import Settings
from streamer.transport.client_address import client_address, is_loopback
from streamer.transport.connection import ConnectionRegistry
from streamer.transport.connection_limits import ConnectionLimits, ConnectionSlot
from streamer.transport.connection_rate import ConnectionRate
from streamer.transport.cors import allowed_origin
from streamer.transport.identify import COST, await_budget, token_of

log = structlog.get_logger()

RETRY_AFTER_MS = 2000
READS = ("/v1/vendors", "/v1/alerts")
LOOPBACK = "loopback"
"""The name of this machine where it counts as an address."""


class Admission:
    """Checks origin and room, and makes clients wait for their turn; `lag` returns how late the event loop is."""

    def __init__(self, settings: Settings, connections: ConnectionRegistry, lag: Callable[[], float]) -> None:
        self.rate = ConnectionRate(settings.admission_rate, settings.admission_wait)
        self.limits = ConnectionLimits(settings.user_connections, settings.address_connections)
        self._costs = CostBudgets(
            CostLimits(
                settings.connection_cost / 1000,
                settings.user_cost / 1000,
                settings.address_cost / 1000,
                settings.heavy_cost / 1000,
            )
        )
        self._settings = settings
        self._connections = connections
        self._lag = lag
        self._warned = False
        self._no_room = 0

    @property
    def refused(self) -> int:
        """Connections refused because too many wait or STREAMER_MAX_CONNECTIONS are open."""
        return self.rate.refused + self._no_room

    async def admit(self, request: web.Request) -> None:
        """Wait until a connection may be opened.

        Raises:
            ProtocolError: the page's origin is not allowed, there is no room, or too many clients wait.
            web.HTTPServiceUnavailable: the server is stopping.
        """
        origin = request.headers.get("Origin")
        if not allowed_origin(origin, request.headers.get("Host"), self._settings.origins):
            raise ProtocolError(
                ErrorCode.FORBIDDEN,
                f"pages of {origin!r:.80} may not open connections here: STREAMER_ORIGINS lists the allowed origins",
            )
        self._check_room()
        await self._wait()
        self._check_room()

    def open_slot(self, request: web.Request) -> ConnectionSlot:
        """Count a client's connection; the caller must release it."""
        address = self._address(request)
        return ConnectionSlot(self.limits, address, self._costs.client(address, asyncio.get_running_loop().time()))

    def read_cost(self, request: web.Request) -> ClientCost:
        """Return what a read over HTTP is charged to: reads of this machine without a token share one budget."""
        address = self._address(request)
        if address is None and token_of(request) is None:
            address = LOOPBACK
        return self._costs.client(address, asyncio.get_running_loop().time())

    def _address(self, request: web.Request) -> str | None:
        forwarded = request.headers.getall("X-Forwarded-For", ())
        if forwarded and not self._settings.trusted_hops and not self._warned and is_loopback(request.remote):
            self._warned = True
            log.warning(
                "a proxy on this machine sends X-Forwarded-For, but STREAMER_TRUSTED_HOPS is 0: all its clients count"
                " as this machine, without limits per address; set it to the number of your proxies"
            )
        return client_address(request.remote, forwarded, self._settings.trusted_hops)

    async def _wait(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._connections.draining:
            wait = self.rate.wait(now, self._lag())
            if wait is None:
                retry = self.rate.retry_after(now)
                raise ProtocolError(
                    ErrorCode.OVERLOADED,
                    f"Admission limit ({self.rate.rate:g} connections/s) reached; retry in {retry:.1f} s",
                    retry_after_ms=round(retry * 1000),
                )
            if wait:
                await asyncio.sleep(wait)
        if self._connections.draining:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})

    def _check_room(self) -> None:
        if (count := len(self._connections)) >= self._settings.max_connections:
            self._no_room += 1
            raise ProtocolError(
                ErrorCode.OVERLOADED,
                f"{count} connections are open and no more are accepted; try again, here or on another server",
                retry_after_ms=RETRY_AFTER_MS,
            )


def limiting_reads(admission: Admission) -> Middleware:
    """Return a middleware that charges reads to their address and user, and refuses those of heavy ones for a while."""

    @web.middleware
    async def limited(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD") or not request.path.startswith(READS):
            return await handler(request)
        cost = admission.read_cost(request)
        clock = asyncio.get_running_loop().time
        await await_budget(cost)
        request[COST] = cost  # `identify` adds the user

        async def handled() -> web.StreamResponse:
            return await handler(request)

        return await measured(handled(), lambda seconds: cost.charge(seconds, clock()))

    return limited
