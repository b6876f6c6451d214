"""A development server with an embedded PostgreSQL and Valkey unless others are given, seeded and ready."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog
from pydantic import SecretStr

from streamer import lifecycle, settings
from streamer.accounts.tokens import rules_of
from streamer.app import Server
from streamer.dev.folder import SERVICES, kept_secret, make_folder, published
from streamer.dev.simulate import simulate
from streamer.errors import Unavailable
from streamer.settings import Settings
from streamer.storage import migrate, seed
from streamer.supervisor import end

if TYPE_CHECKING:
    from streamer.operations.embedded import EmbeddedServer

log = structlog.get_logger()

RECEIVERS = ("localhost:9000", "127.0.0.1:9000")
"""Where webhooks of alerts may go without TLS, unless a setting names other hosts."""
READY_TIMEOUT = 10.0
"""Seconds from start to ready; more than a Redis needs to start."""

Progress = Callable[[str], None]


class DevServer(NamedTuple):
    """URLs of a development server; `elsewhere` is the folder of PostgreSQL's data if not the data folder."""

    http: str
    database: str
    redis: str
    elsewhere: Path | None


@contextlib.asynccontextmanager
async def dev_server(given: Settings, data: Path, simulated: int, progress: Progress) -> AsyncIterator[DevServer]:
    """Runs a development server with `simulated` moving vendors; enters the context once all is ready."""
    await check_port(given.host, given.port)
    from streamer.operations.embedded import PostgresServer, ValkeyServer  # not on Windows

    async with contextlib.AsyncExitStack() as stack:
        folder = make_folder(data)
        elsewhere = None
        if given.database_url is None:
            postgres = PostgresServer(data, progress=progress)
            await _start(stack, postgres)
            database_url = postgres.url
            elsewhere = postgres.data if postgres.folder != folder else None
        else:
            database_url = given.database_url.get_secret_value()
        if given.redis_url is None:
            valkey = ValkeyServer(data, progress=progress)
            await _start(stack, valkey)
            redis_url = valkey.url
        else:
            redis_url = given.redis_url.get_secret_value()
        # Only now: the locks of the two servers have ruled out that another server uses this folder.
        (data / SERVICES).unlink(missing_ok=True)

        progress("migrating the database")
        await migrate.upgrade(database_url)
        await seed.seed(database_url)
        if simulated:
            progress(f"seeding {simulated} simulated vendors")
        vendors = await seed.seed(database_url, simulated) if simulated else []

        progress("starting the server")
        secret = given.jwt_secret.get_secret_value() if given.jwt_secret is not None else kept_secret(data)
        configured = given.model_copy(
            update={
                "database_url": SecretStr(database_url),
                "redis_url": SecretStr(redis_url),
                "jwt_secret": SecretStr(secret),
                "watch_auth": given.watch_auth if "watch_auth" in settings.given() else "optional",
                "alert_key": given.alert_key or SecretStr(secret),
                "alert_development_hosts": given.alert_development_hosts or RECEIVERS,
                # the map's trails
                "history_access": given.history_access if "history_access" in settings.given() else "public",
            }
        )
        server, url = await stack.enter_async_context(lifecycle.serving(configured))
        await until_ready(server)
        stack.enter_context(published(data / SERVICES, {"http": url, "database": database_url, "redis": redis_url}))
        if vendors:
            claims = rules_of(given).claims
            moving = asyncio.create_task(simulate(url, vendors, secret, claims), name="simulated vendors")
            moving.add_done_callback(_log_failure)
            stack.push_async_callback(end, [moving])
        yield DevServer(url, database_url, redis_url, elsewhere)


async def check_port(host: str, port: int) -> None:
    """Raises SettingsError when the address cannot be listened on, before anything is set up."""
    loop = asyncio.get_running_loop()
    try:
        listening = await loop.create_server(asyncio.Protocol, host, port)
    except OSError as refused:
        raise lifecycle.not_listening(host, port, refused) from None
    listening.close()
    await listening.wait_closed()


async def until_ready(server: Server) -> None:
    """Returns when a server is ready; raises Unavailable with the causes when that takes too long."""
    until = time.monotonic() + READY_TIMEOUT
    while causes := server.health.unready():
        if time.monotonic() > until:
            listed = "; ".join(f"{part}: {cause}" for part, cause in causes.items())
            raise Unavailable(f"the server is not ready after {READY_TIMEOUT:g} s: {listed}")
        await asyncio.sleep(0.02)


async def _start(stack: contextlib.AsyncExitStack, server: EmbeddedServer) -> None:
    await stack.enter_async_context(server)
    stack.push_async_callback(end, [asyncio.create_task(_watch(server), name=f"watch {server.kind}")])


async def _watch(server: EmbeddedServer) -> None:
    status = await server.wait()
    log.error(f"{server.kind} ended unexpectedly: restart `streamer dev`", status=status, log=str(server.log))


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (cause := task.exception()) is not None:
        log.error("the simulated vendors stopped", cause=repr(cause))
