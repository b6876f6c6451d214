"""`streamer dev` and `streamer token`: a development server, and tokens for it."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamer import settings
from streamer.accounts.tokens import make_token, rules_of
from streamer.cli import config
from streamer.cli.config import Host, Port
from streamer.cli.process import Steps, interrupts, run, tune_collector
from streamer.dev.development import SECRET, SERVICES, DevServer, dev_server, read_secret, read_services
from streamer.errors import SettingsError, StreamerError
from streamer.operations import logs
from streamer.settings import Settings
from streamer.storage import dsn
from streamer.storage.lookup import has_user

DATA = Path(".venta")
LOOKUP_TIMEOUT = 3.0
"""Seconds that `streamer token` may spend on looking up the user."""


def dev(
    host: Host = None,
    port: Port = None,
    data: Annotated[Path, typer.Option(help="Folder for the embedded PostgreSQL and Valkey.")] = DATA,
    simulate: Annotated[int, typer.Option(help="Number of simulated vendors.", min=0, max=10_000)] = 0,
) -> None:
    """Run a development server, with an embedded PostgreSQL and Valkey unless DATABASE_URL and REDIS_URL are set."""
    configured = config.load(host=host, port=port)
    config.warn_of_unknown_variables()
    logs.configure(form=configured.log_form, level=configured.log_level)
    run(_dev(configured, data, simulate))


def token(
    clerk_id: Annotated[str, typer.Argument(help="users.clerkId of the token's user.")],
    ttl: Annotated[float, typer.Option(help="Seconds until it expires.", min=1)] = 3600,
    data: Annotated[Path, typer.Option(help="Folder of `streamer dev`, for its secret.")] = DATA,
) -> None:
    """Print an HS256 token for development and load tests, signed with STREAMER_JWT_SECRET or dev's own secret."""
    typer.echo(sign(data, clerk_id, ttl))
    if (url := _known_database(data)) is not None and asyncio.run(_is_unknown(url, clerk_id)):
        typer.echo(
            f"streamer: warning: {dsn.parse_url(url).masked()} has no user {clerk_id!r}: a server on it lets this"
            " token watch, but not report for a vendor",
            err=True,
        )


def sign(data: Path, clerk_id: str, ttl: float = 3600) -> str:
    """Returns a token signed with STREAMER_JWT_SECRET or the secret of `streamer dev`; raises SettingsError."""
    configured = settings.load()
    claims = rules_of(configured).claims
    if configured.jwt_secret is not None:
        return make_token(configured.jwt_secret.get_secret_value(), clerk_id, ttl, claims=claims)
    try:
        return make_token(read_secret(data), clerk_id, ttl, claims=claims)
    except OSError:
        raise SettingsError(
            "there is no secret to sign with: set STREAMER_JWT_SECRET, "
            f"or run `streamer dev`, which keeps one in {data / SECRET}"
        ) from None


def _known_database(data: Path) -> str | None:
    given = settings.load().database_url
    return read_services(data).get("database") if given is None else given.get_secret_value()


async def _is_unknown(url: str, clerk_id: str) -> bool:
    """Whether the database answers and has no such user."""
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT):
            return not await has_user(url, clerk_id)
    except (StreamerError, TimeoutError):
        return False


async def _dev(configured: Settings, data: Path, simulated: int) -> None:
    console = Console(stderr=True, soft_wrap=True)
    async with interrupts() as interrupt, contextlib.AsyncExitStack() as stack:
        with Steps(console) as steps:
            server = await stack.enter_async_context(dev_server(configured, data, simulated, steps))
        tune_collector()
        _greet(console, server, data, simulated)
        await interrupt.wait()
        console.print("stopping")


def _greet(console: Console, server: DevServer, data: Path, simulated: int) -> None:
    """Prints the URLs and what to try next."""

    def line(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    url = server.http
    streamer = Path(sys.argv[0])
    at = "" if data == DATA else f" --data {shlex.quote(str(data))}"
    line(f"serving on {url}" + (f", {simulated} simulated vendors moving" if simulated else ""), "bold")
    line(f"  PostgreSQL  {dsn.parse_url(server.database).masked()}")
    if server.elsewhere is not None:
        line(f"              its data is in {server.elsewhere}, which the user it runs as can enter")
    line(f"  Redis       {config.masked_redis(server.redis)}")
    line(f"  all URLs with their passwords: {data / SERVICES}")
    line()
    line("try next", "bold")
    line("  the live map, and the page that turns a phone's browser into a vendor:")
    line(f"    {url}/    {url}/vendor")
    line("  list nearby vendors:")
    line(f"    curl '{url}/v1/vendors/nearby?lat=52.2297&long=21.0122&radius=2000'")
    line("  watch them move:")
    line(f"    {streamer} watch 52.2297,21.0122,2000{at}")
    line("  send a ping as the test vendor:")
    line(f"    {streamer} ping 52.2297,21.0122{at}")
    line("Ctrl-C stops everything")
