"""A server for development: with a PostgreSQL and a Valkey of its own unless others are given, seeded, and ready.

In its data folder, beside what `streamer/operations/embedded.py` keeps there:

    services.json   {"http","database","redis"}: the URLs, passwords included; there while the server is ready
    jwt-secret      signs its tokens, kept so that they outlive a restart
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog
from pydantic import SecretStr

from streamer import app, settings
from streamer.accounts.tokens import rules_of
from streamer.app import Server
from streamer.dev.simulate import simulate
from streamer.errors import SettingsError, Unavailable
from streamer.settings import Settings
from streamer.storage import migrate, seed
from streamer.supervisor import end

if TYPE_CHECKING:
    from streamer.operations.embedded import EmbeddedServer

log = structlog.get_logger()

SECRET = "jwt-secret"
SERVICES = "services.json"
READY_WITHIN = 10.0
"""Seconds from started to ready; more than a Redis needs that only now comes up."""

Say = Callable[[str], None]


class Developed(NamedTuple):
    """Where the parts of a development server are; `elsewhere` where PostgreSQL's data is if not in the data folder."""

    http: str
    database: str
    redis: str
    elsewhere: Path | None


@contextlib.asynccontextmanager
async def developing(given: Settings, data: Path, simulated: int, say: Say) -> AsyncIterator[Developed]:
    """Serve while the context lasts, once all is ready; `say` is told of each step on the way."""
    await refuse_taken(given.host, given.port)
    from streamer.operations.embedded import PostgresServer, ValkeyServer  # not on Windows

    async with contextlib.AsyncExitStack() as stack:
        folder = make_folder(data)
        elsewhere = None
        if given.database_url is None:
            postgres = PostgresServer(data, progress=say)
            await _start(stack, postgres)
            database_url = postgres.url
            elsewhere = postgres.data if postgres.folder != folder else None
        else:
            database_url = given.database_url.get_secret_value()
        if given.redis_url is None:
            valkey = ValkeyServer(data, progress=say)
            await _start(stack, valkey)
            redis_url = valkey.url
        else:
            redis_url = given.redis_url.get_secret_value()
        # not before: another server may be using this folder, which the locks of the two have just ruled out
        (data / SERVICES).unlink(missing_ok=True)

        say("bringing the schema up to date")
        await migrate.upgrade(database_url)
        await seed.seed(database_url)
        if simulated:
            say(f"seeding {simulated} simulated vendors")
        vendors = await seed.seed(database_url, simulated) if simulated else []

        say("starting the server")
        secret = given.jwt_secret.get_secret_value() if given.jwt_secret is not None else kept_secret(data)
        configured = given.model_copy(
            update={
                "database_url": SecretStr(database_url),
                "redis_url": SecretStr(redis_url),
                "jwt_secret": SecretStr(secret),
                "watch_auth": given.watch_auth if "watch_auth" in settings.given() else "optional",
                # the map's trails
                "history_access": given.history_access if "history_access" in settings.given() else "public",
            }
        )
        server, url = await stack.enter_async_context(app.serving(configured))
        await until_ready(server)
        stack.enter_context(_published(data / SERVICES, {"http": url, "database": database_url, "redis": redis_url}))
        if vendors:
            claims = rules_of(given).claims
            moving = asyncio.create_task(simulate(url, vendors, secret, claims), name="simulated vendors")
            moving.add_done_callback(_lamented)
            stack.push_async_callback(end, [moving])
        yield Developed(url, database_url, redis_url, elsewhere)


async def refuse_taken(host: str, port: int) -> None:
    """SettingsError when it's not possible to listen there: better told now than after all is set up."""
    loop = asyncio.get_running_loop()
    try:
        listening = await loop.create_server(asyncio.Protocol, host, port)
    except OSError as refused:
        raise app.not_listening(host, port, refused) from None
    listening.close()
    await listening.wait_closed()


async def until_ready(server: Server) -> None:
    """Return when a server can serve; Unavailable says what stands in the way of it for too long."""
    until = time.monotonic() + READY_WITHIN
    while causes := await server.unready():
        if time.monotonic() > until:
            said = "; ".join(f"{part}: {cause}" for part, cause in causes.items())
            raise Unavailable(f"the server is not ready after {READY_WITHIN:g} s: {said}")
        await asyncio.sleep(0.02)


def make_folder(data: Path) -> Path:
    """The data folder, made when it isn't there, as an absolute path."""
    try:
        # not for others to look into; under root PostgreSQL runs as another user and has to pass through
        data.mkdir(0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        if not os.access(data, os.W_OK | os.X_OK):
            raise PermissionError("it can't be written to")
    except OSError as refused:
        raise SettingsError(f"--data {data} can't be used: {refused.strerror or refused}; choose another") from None
    return data.absolute()


def kept_secret(data: Path) -> str:
    """The secret that a development server in this folder signs its tokens with; made when it isn't there."""
    path = data / SECRET
    if not path.exists():
        _write(path, secrets.token_urlsafe(48))
    return read_secret(data)


def read_secret(data: Path) -> str:
    """The secret of the development server in this folder; OSError where there is none."""
    return (data / SECRET).read_text().strip()


def _write(path: Path, text: str) -> None:
    """A file that is complete or not there, and for nobody else to read."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with open(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


@contextlib.contextmanager
def _published(path: Path, urls: dict[str, str]) -> Iterator[None]:
    text = json.dumps(urls)
    _write(path, text)
    try:
        yield
    finally:
        # another server's stays, which could have come where both use given services
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                path.unlink()


async def _start(stack: contextlib.AsyncExitStack, server: EmbeddedServer) -> None:
    """Have a server of our own until the stack unwinds, and have it noticed when it ends before."""
    await stack.enter_async_context(server)
    stack.push_async_callback(end, [asyncio.create_task(_watch(server), name=f"watch {server.kind}")])


async def _watch(server: EmbeddedServer) -> None:
    status = await server.wait()
    log.error(f"{server.kind} ended by itself: stop this and start it again", status=status, log=str(server.log))


def _lamented(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (cause := task.exception()) is not None:
        log.error("the simulated vendors stopped moving", cause=repr(cause))
