"""The commands: each one call into the parts. `streamer --help` is the reference."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import faulthandler
import gc
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from streamer import app, configuration, database, logs, settings
from streamer.auth import make_token, rules_of
from streamer.board import Board
from streamer.development import SECRET, SERVICES, Developed, developing
from streamer.errors import DatabaseError, SettingsError, StreamerError
from streamer.grants import quoted
from streamer.settings import Settings
from streamer.watchdog import Watchdog
from streamer.workers import Workers, reserve

cli = typer.Typer(
    name="streamer",
    help="Venta's live-location server: vendors report, PostgreSQL remembers, customers nearby see them move.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
db = typer.Typer(name="db", help="The database's schema and contents.", no_args_is_help=True)
cli.add_typer(db)

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]

DATA = Path(".venta")
STOP_WITHIN = 12.0
"""Seconds beyond `drain_timeout` that an orderly stop may take before the process is ended where it hangs."""
MINUTE = timedelta(minutes=1)
NEEDS_DATABASE: Mapping[tuple[str, ...], str] = {("database_url",): "which PostgreSQL is meant"}


def main() -> None:
    """The `streamer` command. Exit status: 0 done, 1 failed, 2 wrong use or settings."""
    try:
        cli()
    except SettingsError as wrong:
        sys.exit(_said(wrong, 2))
    except StreamerError as failed:
        sys.exit(_said(failed, 1))


@cli.command()
def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Processes on the one port.", min=1, max=64)] = None,
) -> None:
    """Serve on the PostgreSQL of DATABASE_URL and the Redis of REDIS_URL."""
    configured = configuration.load(configuration.SERVING, host=host, port=port, workers=workers)
    _name_strangers()
    logs.configure(form=configured.log_form, level=configured.log_level)
    faulthandler.enable()
    if configured.workers > 1:
        sys.exit(_serve_by_workers(configured))
    _run(_serve(configured))


@cli.command()
def dev(
    host: Host = None,
    port: Port = None,
    data: Annotated[Path, typer.Option(help="Folder for the PostgreSQL and Valkey of this server.")] = DATA,
    simulate: Annotated[int, typer.Option(help="So many simulated vendors move about.", min=0, max=10_000)] = 0,
) -> None:
    """Serve for development: with a PostgreSQL and a Valkey of its own, unless DATABASE_URL and REDIS_URL are set."""
    configured = configuration.load(host=host, port=port)
    _name_strangers()
    logs.configure(form=configured.log_form, level=configured.log_level)
    _run(_dev(configured, data, simulate))


@cli.command()
def config(
    host: Host = None,
    port: Port = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md instead.")] = False,
) -> None:
    """Print every setting that is in force, secrets masked, and where it came from."""
    if markdown:
        typer.echo(configuration.page(), nl=False)
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for variable, value, unit, origin in configuration.in_force(host=host, port=port):
        table.add_row(variable, escape(f"{value} {unit}" if unit not in ("", "URL") else value), origin)
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    _name_strangers()


@cli.command()
def token(
    clerk_id: Annotated[str, typer.Argument(help="users.clerkId: who the token speaks for.")],
    ttl: Annotated[float, typer.Option(help="Seconds until it expires.", min=1)] = 3600,
    data: Annotated[Path, typer.Option(help="Where `streamer dev` keeps its secret.")] = DATA,
) -> None:
    """Print an HS256 token for development and load tests, signed with STREAMER_JWT_SECRET or dev's own secret."""
    configured = settings.load()
    secret, claims = configured.jwt_secret, rules_of(configured).claims
    if secret is not None:
        typer.echo(make_token(secret.get_secret_value(), clerk_id, ttl, claims=claims))
        return
    try:
        typer.echo(make_token((data / SECRET).read_text().strip(), clerk_id, ttl, claims=claims))
    except OSError:
        raise SettingsError(
            "there is no secret to sign with: set STREAMER_JWT_SECRET, "
            f"or run `streamer dev`, which keeps one in {data / SECRET}"
        ) from None


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(help="Up to this migration.")] = "head") -> None:
    """Bring the database's schema up to date."""
    url = _database_url()
    asyncio.run(database.upgrade(url, revision))
    _say_revision(url)


@db.command()
def downgrade(revision: Annotated[str, typer.Argument(help="Down to this migration; `base` for none.")]) -> None:
    """Take migrations back."""
    url = _database_url()
    asyncio.run(database.downgrade(url, revision))
    _say_revision(url)


@db.command()
def reset(yes: Annotated[bool, typer.Option("--yes", help="Do it outside development too.")] = False) -> None:
    """Drop all tables with all they hold, and make them anew."""
    configured = configuration.load(NEEDS_DATABASE)
    url = _database_url(configured)
    if configured.env != "development" and not yes:
        raise DatabaseError(
            f"reset deletes everything in {database.parse_url(url).masked()}; "
            "say --yes, or set STREAMER_ENV=development where that is what you want"
        )
    asyncio.run(database.reset(url))
    _say_revision(url)


@db.command()
def grant(
    role: Annotated[str, typer.Argument(help="The role under which `serve` is to run; made when it is not there.")],
    password_file: Annotated[
        typer.FileText | None, typer.Option(help="Its password: the first line of a file, or of stdin with -.")
    ] = None,
) -> None:
    """Give a role the rights that `serve` needs, and no others on our tables. Run it as the owner of the tables."""
    password = None if password_file is None else password_file.readline().rstrip("\r\n")
    url = _database_url()
    done = asyncio.run(database.grant(url, role, password))
    typer.echo(f"role {role} {'was made and ' if done.created else ''}has the rights of `serve`")
    if done.created and password is None:
        typer.echo("it has no password: give it one by --password-file, unless it gets in otherwise", err=True)
    if not done.login:
        typer.echo(f"it may not log in: ALTER ROLE {quoted(role)} LOGIN, or grant it to one that may", err=True)
    for more in done.beyond:
        typer.echo(f"it also has {more}, by PUBLIC or by a role it is in: revoke that there", err=True)


@db.command()
def audit(
    since: Annotated[str | None, typer.Option(help="Not what is longer ago than 90m, 24h, 30d.")] = None,
    table: Annotated[str | None, typer.Option(help="users, vendors, subscriptions or integrations.")] = None,
    id: Annotated[str | None, typer.Option(help="Of the row with this id.")] = None,
    limit: Annotated[int, typer.Option(help="So many entries, the newest.", min=1, max=100_000)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each entry.")] = False,
) -> None:
    """Print who changed users, vendors, subscriptions and integrations, from what to what, the newest first."""
    begin = None if since is None else _ago("--since", since)
    for entry in asyncio.run(database.audited(_database_url(), since=begin, table=table, row_id=id, limit=limit)):
        typer.echo(json.dumps(entry.fields()) if as_json else entry.line())


@db.command()
def prune_audit(
    older_than: Annotated[str, typer.Option(help="Forget what is longer ago than 365d.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many entries those are.")] = False,
) -> None:
    """Forget who changed what long ago."""
    count = asyncio.run(database.prune_audit(_database_url(), _ago("--older-than", older_than), dry_run=dry_run))
    typer.echo(f"{count} entries {'would be' if dry_run else 'were'} forgotten")


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
    with Watchdog(configured.stuck_after) as watchdog:
        async with _interrupt() as interrupt, app.serving(configured) as (_, url):
            _spare_the_collector()
            print(f"serving on {url}", file=sys.stderr, flush=True)
            await interrupt.wait()
            watchdog.hurry(configured.drain_timeout + STOP_WITHIN)
            print("stopping", file=sys.stderr, flush=True)


def _serve_by_workers(configured: Settings) -> int:
    """Serve by several processes; the exit status."""
    try:
        held, port = reserve(configured.host, configured.port)
    except OSError as taken:
        raise app.not_listening(configured.host, configured.port, taken) from None
    settled = configured.model_copy(update={"port": port})
    board = Board(settled.workers)
    host = f"[{settled.host}]" if ":" in settled.host else settled.host

    def ready() -> None:
        said = f"serving on http://{host}:{port} with {settled.workers} workers"
        print(said, file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamer-")))
        for one in held:
            stack.enter_context(one)

        def work(number: int) -> int:
            structlog.contextvars.bind_contextvars(worker=number)
            try:
                _run(_work(settled, app.Worker(board, number, folder)))
            except SettingsError as wrong:
                return _said(wrong, 2)
            except StreamerError as failed:
                return _said(failed, 1)
            return 0

        _preload()
        return Workers(
            board, work, stuck_after=settled.stuck_after + 2.0, drain_timeout=settled.drain_timeout, ready=ready
        ).run()


async def _work(configured: Settings, worker: app.Worker) -> None:
    with Watchdog(configured.stuck_after) as watchdog:
        async with _interrupt() as interrupt, app.serving(configured, worker):
            _spare_the_collector()
            await interrupt.wait()
            watchdog.hurry(configured.drain_timeout + STOP_WITHIN)


def _preload() -> None:
    """What each worker would do for itself is done once, and shared by all."""
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401
    gc.collect()
    gc.freeze()


async def _dev(configured: Settings, data: Path, simulated: int) -> None:
    console = Console(stderr=True, soft_wrap=True)
    async with _interrupt() as interrupt, contextlib.AsyncExitStack() as stack:
        with Steps(console) as steps:
            developed = await stack.enter_async_context(developing(configured, data, simulated, steps))
        _spare_the_collector()
        _greet(console, developed, data, simulated)
        await interrupt.wait()
        console.print("stopping")


class Steps:
    """Tells how far a start is: on a terminal the step in progress turns, elsewhere each is a line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting", console=console)
        self._step = ""
        self._since = time.monotonic()

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._status.stop()
        self._done()

    def __call__(self, step: str) -> None:
        """The next step begins, and so the one before is done."""
        self._done()
        self._step, self._since = step, time.monotonic()
        if self._console.is_terminal:
            self._status.update(escape(step))
        else:
            self._console.print(f"{step} …", markup=False, highlight=False)

    def _done(self) -> None:
        if self._step and self._console.is_terminal:
            self._console.print(
                f"[dim]  {escape(self._step)}: {time.monotonic() - self._since:.1f} s[/dim]", highlight=False
            )
        self._step = ""


def _greet(console: Console, developed: Developed, data: Path, simulated: int) -> None:
    """Where everything is, and what to try next."""

    def line(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    url = developed.http
    streamer = Path(sys.argv[0])
    line(f"serving on {url}" + (f", {simulated} simulated vendors moving" if simulated else ""), "bold")
    line(f"  PostgreSQL  {database.parse_url(developed.database).masked()}")
    if developed.elsewhere is not None:
        line(f"              its data is in {developed.elsewhere}, where the user it runs as can go")
    line(f"  Redis       {configuration.masked_redis(developed.redis)}")
    line(f"  all URLs with their passwords: {data / SERVICES}")
    line()
    line("try next", "bold")
    line("  who is near just now:")
    line(f"    curl '{url}/v1/vendors/nearby?lat=52.2297&long=21.0122&radius=2000'")
    line("  see them move (README.md, For the customer app; saved as customer.py):")
    line(f"    {streamer.with_name('python')} customer.py {url}")
    line("  be a vendor yourself (README.md, For the vendor app; saved as vendor.py):")
    at = "" if data == DATA else f" --data {shlex.quote(str(data))}"
    line(f"    {streamer.with_name('python')} vendor.py {url} $({streamer} token clerk_test_user{at})")
    line("Ctrl-C stops it all")


class Interrupt:
    """Ctrl-C and SIGTERM. Before `wait` they cancel what is being set up; a second one ends the process at once."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.came = False
        self._task = task
        self._waited_for: asyncio.Event | None = None

    async def wait(self) -> None:
        """Return when one comes."""
        self._waited_for = asyncio.Event()
        await self._waited_for.wait()

    def __call__(self, number: signal.Signals) -> None:
        """One came."""
        if self.came:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._waited_for is not None:
            self._waited_for.set()
        else:
            self._task.cancel()
        self.came = True


@contextlib.asynccontextmanager
async def _interrupt() -> AsyncIterator[Interrupt]:
    """Ctrl-C and SIGTERM end in order what is within; that is no failure."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupt = Interrupt(task)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield interrupt
    except asyncio.CancelledError:
        if not interrupt.came:
            raise
        task.uncancel()
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
    url = (configured or configuration.load(NEEDS_DATABASE)).database_url
    assert url is not None
    return url.get_secret_value()


def _ago(option: str, given: str) -> datetime:
    """So long ago as 90m, 24h, 30d say."""
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", given)
    if found is None:
        raise SettingsError(f"{option} must be like 90m, 24h or 30d, not {given!r}")
    return datetime.now(UTC) - int(found[1]) * {"m": MINUTE, "h": 60 * MINUTE, "d": 24 * 60 * MINUTE}[found[2]]


def _say_revision(url: str) -> None:
    revision = asyncio.run(database.revision(url))
    typer.echo(f"{database.parse_url(url).masked()} is at migration {revision or 'none'}")


def _name_strangers() -> None:
    for name in settings.strangers():
        close = difflib.get_close_matches(name, list(map(settings.variable, Settings.model_fields)), 1)
        print(f"streamer: {name} is no setting" + (f": {close[0]} is" if close else ""), file=sys.stderr)


def _said(error: StreamerError, status: int) -> int:
    print(f"streamer: {error}", file=sys.stderr)
    return status
