"""Starts and stops a server: the checks before the start, the ports, and the order of the shutdown."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from streamer.app import Server, clock
from streamer.counters import Counters
from streamer.errors import SettingsError
from streamer.operations.workers.peers import Peers
from streamer.settings import Settings
from streamer.storage import revisions, roles
from streamer.storage.database import Database
from streamer.storage.store import Store
from streamer.supervisor import Supervisor
from streamer.transport.aiohttp_compat import hide_server
from streamer.transport.mqtt_url import MqttBroker

KEEPALIVE = 75.0
"""Seconds an idle HTTP connection is kept: longer than proxies keep theirs, so that the proxy closes it."""


def not_listening(host: str, port: int, error: OSError, option: str = "--port") -> SettingsError:
    """Explains why an address cannot be listened on; `option` sets the port."""
    where = f"{f'[{host}]' if ':' in host else host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return SettingsError(f"port {port} is taken: stop what listens on {where}, or choose another by {option}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SettingsError(f"listening on {where} is not allowed: choose a port from 1024 on by {option}")
    return SettingsError(f"cannot listen on {where}: {error.strerror or error}; choose another address by --host")


async def open_server(settings: Settings, peers: Peers | None = None) -> Server:
    """Returns a server, not started. Raises DatabaseError for another migration or missing privileges."""
    if settings.database_url is None or settings.redis_url is None:
        raise SettingsError("DATABASE_URL and REDIS_URL are needed")
    url = settings.database_url.get_secret_value()
    await revisions.require_newest(url)
    await roles.require_rights(url)
    counters = Counters()
    database = await Database.open(
        url,
        pool_size=settings.pool_size,
        pool_timeout=settings.pool_timeout,
        statement_timeout=settings.statement_timeout,
        counters=counters,
    )
    return Server(settings, Store(database), counters, peers=peers)


@asynccontextmanager
async def serving(settings: Settings, peers: Peers | None = None) -> AsyncIterator[tuple[Server, str]]:
    """Serves while the context lasts, alone or as one of several workers; yields the server and its URL."""
    async with AsyncExitStack() as stack:
        server = await open_server(settings, peers)
        await server.start()
        stack.push_async_callback(server.stop)
        admin = await _runner(stack, server.admin)
        runner = await _runner(stack, server.app)
        listening = runner.server
        assert listening is not None
        server.supervisor.start({"slow-clients": lambda: server.slow_clients.watch(lambda: listening.connections)})
        stack.push_async_callback(server.drain)
        url = await _listen(stack, runner, settings.host, settings.port, "--port", shared=peers is not None)
        if settings.admin_port is not None:
            server.admin_url = await _listen(
                stack, admin, settings.host, settings.admin_port, "STREAMER_ADMIN_PORT", shared=peers is not None
            )
        if peers is not None:
            peers.socket.unlink(missing_ok=True)  # its predecessor may have been killed
            await web.UnixSite(admin, peers.socket).start()
            server.supervisor.start({"beat": server.beat})
        yield server, url


@asynccontextmanager
async def bridging(settings: Settings, broker: MqttBroker, client_id: str) -> AsyncIterator[Server]:
    """Stores what a broker's OwnTracks apps publish while the context lasts; serves only the operators' endpoints."""
    from streamer.transport.mqtt import MqttBridge  # not above: aiomqtt takes a tenth of a second to import

    async with AsyncExitStack() as stack:
        server = await open_server(settings)
        await server.start()
        stack.push_async_callback(server.stop)
        stack.push_async_callback(server.drain)
        if settings.admin_port is not None:
            admin = await _runner(stack, server.admin)
            server.admin_url = await _listen(
                stack, admin, settings.host, settings.admin_port, "STREAMER_ADMIN_PORT", shared=False
            )
        server.mqtt = MqttBridge(broker, client_id, server.reports, server.dataloader, server.counters, clock)
        receiving = Supervisor()
        receiving.failures = server.supervisor.failures  # so that readiness names it
        receiving.start({"mqtt": server.mqtt.run})
        # Stopped before the drain: the broker sends messages that are not acked again to the next process.
        stack.push_async_callback(receiving.stop)
        yield server


async def _runner(stack: AsyncExitStack, served: web.Application) -> web.AppRunner:
    runner = web.AppRunner(
        served, access_log=None, handle_signals=False, shutdown_timeout=1.0, keepalive_timeout=KEEPALIVE
    )
    await runner.setup()
    hide_server(runner)
    stack.push_async_callback(runner.cleanup)
    return runner


async def _listen(
    stack: AsyncExitStack, runner: web.AppRunner, host: str, port: int, option: str, *, shared: bool
) -> str:
    """Listens until the stack unwinds and returns the URL; `shared` lets other workers listen on the port too."""
    site = web.TCPSite(runner, host, port, backlog=4096, reuse_port=shared)
    try:
        await site.start()
    except OSError as error:
        raise not_listening(host, port, error, option) from None
    stack.push_async_callback(site.stop)
    bound_host, bound_port = runner.addresses[0][:2]
    return f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
