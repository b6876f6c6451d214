"""`streamer doctor`: checks what a server needs, and reports problems with their remedies."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from streamer.accounts.jwks import IssuerKeys
from streamer.broker.diagnose import look_at
from streamer.cli import config
from streamer.dev.development import check_port
from streamer.dev.folder import DATA, read_services
from streamer.errors import StreamerError
from streamer.operations import logs
from streamer.operations.file_limits import reserved
from streamer.settings import Settings
from streamer.storage import dsn, queries, revisions, roles
from streamer.storage.connections import connected

MAX_SKEW = 2.0
"""Seconds that clocks may differ."""
CHECK_TIMEOUT = 15.0


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    ok: bool
    detail: str


def doctor(
    data: Annotated[Path, typer.Option(help="Folder of `streamer dev`, for its PostgreSQL and Redis.")] = DATA,
) -> None:
    """Check PostgreSQL, migrations, rights, Redis, TLS, clocks, token keys and limits; exit status 1 names a fault."""
    logs.configure(level="error")
    running = read_services(data)
    given = config.load()
    overrides = {
        name: running[key]
        for name, key in (("database_url", "database"), ("redis_url", "redis"))
        if getattr(given, name) is None and key in running
    }
    configured = config.load(None, **overrides)
    console = Console(soft_wrap=True, highlight=False)
    failed = asyncio.run(_print(console, configured, serving="http" in running))
    if failed:
        raise typer.Exit(1)


async def _print(console: Console, configured: Settings, serving: bool) -> int:
    failed = 0
    async for finding in checks(configured, serving=serving):
        failed += not finding.ok
        mark = "[green]ok    [/green]" if finding.ok else "[red]FAILED[/red]"
        console.print(f"{mark} {finding.what}: {escape(finding.detail)}")
    console.print(f"{failed} of the checks failed" if failed else "everything is in order")
    return failed


async def checks(configured: Settings, *, serving: bool = False) -> AsyncIterator[Finding]:
    """Yields the finding of each check; `serving`: a server of this machine already uses the port."""
    if configured.database_url is None:
        yield Finding("PostgreSQL", False, "DATABASE_URL is not set")
    else:
        url = configured.database_url.get_secret_value()
        yield await _check("PostgreSQL", _postgresql(url))
        yield await _check("migrations", _done(revisions.require_newest(url), "the schema is this version's"))
        yield await _check("database rights", _done(roles.require_rights(url), "the role has what `serve` needs"))
    if configured.redis_url is None:
        yield Finding("Redis", False, "REDIS_URL is not set")
    else:
        yield await _check("Redis", _redis(configured.redis_url.get_secret_value()))
    if configured.jwks_url is not None:
        yield await _check("token keys", _jwks(configured.jwks_url))
    elif configured.jwt_secret is not None:
        yield Finding("token keys", True, "a shared secret (HS256)")
    else:
        detail = "STREAMER_JWKS_URL or STREAMER_JWT_SECRET is not set; `streamer dev` has a secret of its own"
        yield Finding("token keys", serving, detail)
    on = configured.alert_key is not None
    yield Finding("alerts", True, "on" if on else "off: set STREAMER_ALERT_KEY to turn them on")
    if not serving:
        address = f"{configured.host}:{configured.port}"
        yield await _check("port", _done(check_port(configured.host, configured.port), f"{address} is free"))
    yield open_files(configured, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


async def _check(what: str, detail: Awaitable[str]) -> Finding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            return Finding(what, True, await detail)
    except StreamerError as error:
        return Finding(what, False, str(error))
    except TimeoutError:
        return Finding(what, False, f"no answer within {CHECK_TIMEOUT:g} s")


async def _done(check: Awaitable[object], detail: str) -> str:
    await check
    return detail


async def _postgresql(url: str) -> str:
    began = time.time()
    async with connected(url) as connection:
        _check_clock(await connection.fetchval(queries.CLOCK) / 1000, began)
        version = await connection.fetchval(queries.VERSION)
    return f"version {version} at {dsn.parse_url(url).masked()}, its clock agrees"


async def _redis(url: str) -> str:
    began = time.time()
    state = await look_at(url)
    _check_clock(state.clock, began)
    return f"version {state.version} at {config.masked_redis(url)}, takes writes, its clock agrees"


async def _jwks(url: str) -> str:
    await IssuerKeys(url).key(None)
    return f"{url} has usable keys"


def _check_clock(clock: float, began: float) -> None:
    """Raises StreamerError unless a clock that was read since `began` agrees with this machine's."""
    skew = clock - began if clock < began else max(0.0, clock - time.time())
    if abs(skew) > MAX_SKEW:
        direction = "ahead of" if skew > 0 else "behind"
        raise StreamerError(
            f"its clock is {abs(skew):.1f} s {direction} this machine's: synchronize both, for example by chrony"
        )


def open_files(configured: Settings, limit: int) -> Finding:
    """Returns whether the limit of open files is enough for STREAMER_MAX_CONNECTIONS."""
    reserve = reserved(configured)
    needed = configured.max_connections + reserve
    if limit in (-1, resource.RLIM_INFINITY) or limit >= needed:
        return Finding("open files", True, f"the limit allows {configured.max_connections} connections")
    return Finding(
        "open files",
        False,
        f"the limit is {limit}, and STREAMER_MAX_CONNECTIONS needs {needed}: raise it (ulimit -Hn, LimitNOFILE) or"
        f" set STREAMER_MAX_CONNECTIONS to {max(1, limit - reserve)}",
    )
