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
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from streamer import app, settings
from streamer.accounts.tokens import make_token, rules_of
from streamer.cli import config as config_values
from streamer.dev.development import SECRET, SERVICES, Developed, developing
from streamer.errors import DatabaseError, SettingsError, StreamerError
from streamer.operations import backup as backups
from streamer.operations import logs, maintenance
from streamer.operations.watchdog import Watchdog
from streamer.operations.workers.manager import Workers, reserve
from streamer.operations.workers.peers import Peers
from streamer.operations.workers.scoreboard import Scoreboard
from streamer.settings import Settings
from streamer.storage import database
from streamer.storage.roles import quoted

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
    configured = config_values.load(config_values.SERVING, host=host, port=port, workers=workers)
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
    configured = config_values.load(host=host, port=port)
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
        typer.echo(config_values.page(), nl=False)
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for variable, value, unit, origin in config_values.in_force(host=host, port=port):
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
    configured = config_values.load(NEEDS_DATABASE)
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


@db.command()
def backup(
    folder: Annotated[Path | None, typer.Option("--dir", help="Where to; STREAMER_BACKUP_DIR otherwise.")] = None,
    keep_days: Annotated[int, typer.Option(help="Then remove those older than this, never the newest.", min=1)] = 7,
    to: Annotated[str | None, typer.Option(help="Encrypt to this age or SSH public key.", metavar="KEY")] = None,
) -> None:
    """Write a backup, whole or not at all, with the count and checksum of every table's rows."""
    configured = config_values.load(NEEDS_DATABASE)
    folder = _backup_folder(configured, folder)
    began = time.monotonic()
    path = asyncio.run(backups.backup(_database_url(configured), folder, recipient=to))
    manifest = backups.Manifest.read(path)
    rows = sum(table.rows for table in manifest.tables.values())
    typer.echo(
        f"{path}: {manifest.bytes:,} bytes, {rows:,} rows of {len(manifest.tables)} tables,"
        f" in {time.monotonic() - began:.1f} s"
    )
    for removed in backups.remove_old(folder, keep_days):
        typer.echo(f"removed {removed}, older than {keep_days} days")


Identity = Annotated[Path | None, typer.Option(help="File with the private key of an encrypted one.")]


@db.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup, its manifest (.json) beside it.")], identity: Identity = None
) -> None:
    """Restore a backup into DATABASE_URL, which must be empty; whole or not at all, every row compared."""
    url = _database_url()
    manifest = asyncio.run(backups.restore(url, file, identity=identity))
    rows = sum(table.rows for table in manifest.tables.values())
    typer.echo(f"restored {rows:,} rows of {len(manifest.tables)} tables, as they were at {manifest.at}")
    typer.echo("next: `streamer db upgrade`, which makes the partitions of these days")


@db.command()
def prove(
    file: Annotated[Path | None, typer.Argument(help="A backup; the newest in --dir otherwise.")] = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="STREAMER_BACKUP_DIR otherwise.")] = None,
    identity: Identity = None,
    on: Annotated[
        str | None, typer.Option(help="Restore on this server, whose role may create databases.", metavar="URL")
    ] = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder for the PostgreSQL to restore into.")] = None,
) -> None:
    """Prove the last backup: restore it into a scratch database, compare every row, throw it away. For a schedule."""
    dump = file or backups.newest(_backup_folder(config_values.load(), folder)).path
    with Steps(Console(stderr=True, soft_wrap=True)) as steps:
        proof = asyncio.run(backups.prove(dump, identity=identity, on=on, scratch=scratch, progress=steps))
    rows = sum(table.rows for table in proof.manifest.tables.values())
    typer.echo(
        f"{proof.path} is good: {rows:,} rows of {len(proof.manifest.tables)} tables, as they were at"
        f" {proof.manifest.at}, restored in {proof.seconds:.1f} s"
    )
    for difference in proof.differences:
        typer.echo(f"note: it is not at this version's schema: {difference}")


@db.command()
def prune(
    older_than: Annotated[str, typer.Option(help="Days or weeks: 30d, 12w.")],
    audit_older_than: Annotated[str, typer.Option(help="Of who changed what, which is kept longer.")] = "365d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be dropped.")] = False,
) -> None:
    """Forget locations: drop the days that are older; and old entries of the audit."""
    days, audit_days = maintenance.days_of(older_than), maintenance.days_of(audit_older_than, "--audit-older-than")
    pruned = asyncio.run(maintenance.prune(_database_url(), days, audit_days, dry_run=dry_run))
    verb = "would drop" if dry_run else "dropped"
    for partition in pruned.partitions:
        typer.echo(f"{verb} {partition.name}: about {partition.rows:,} rows, {partition.bytes:,} bytes")
    if pruned.rows:
        typer.echo(f"{verb} {pruned.rows:,} rows of locations_default")
    if pruned.entries:
        typer.echo(f"{verb} {pruned.entries:,} entries of the audit")
    if not pruned.partitions and not pruned.rows and not pruned.entries:
        typer.echo(f"there is nothing from before {pruned.before}")


@db.command()
def stats(as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")] = False) -> None:
    """Show sizes, dead rows, cache hits, indexes and the most expensive statements."""
    found = asyncio.run(maintenance.stats(_database_url()))
    if as_json:
        value = asdict(found)
        for name in ("tables", "indexes", "partitions", "statements"):
            if (rows := getattr(found, name)) is not None:
                value[name] = [row._asdict() for row in rows]
        typer.echo(json.dumps(value, default=str))
    else:
        _show_stats(Console(width=None if sys.stdout.isatty() else 160), found)


@db.command()
def check() -> None:
    """Name each difference between the database and what this version needs; exit status 1 when there is any."""
    url = _database_url()
    differences = asyncio.run(maintenance.check(url))
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise DatabaseError(f"{database.parse_url(url).masked()}: {len(differences)} differences")
    typer.echo(f"{database.parse_url(url).masked()} is as this version needs it")


def _backup_folder(configured: Settings, given: Path | None) -> Path:
    folder = given or configured.backup_dir
    if folder is None:
        raise SettingsError("which folder of backups is meant? say --dir, or set STREAMER_BACKUP_DIR")
    return folder


def _show_stats(console: Console, found: maintenance.Stats) -> None:
    def table(*columns: str) -> Table:
        made = Table(box=None, pad_edge=False)
        for number, column in enumerate(columns):
            made.add_column(column, justify="left" if number == 0 else "right")
        return made

    hits = "none asked for" if found.cache_hits is None else f"{found.cache_hits:.2%}"
    oldest = "none" if found.oldest_transaction is None else f"{found.oldest_transaction:.0f} s"
    console.print(
        f"database {found.bytes:,} bytes, {found.connections} connections, cache hits {hits},"
        f" oldest transaction {oldest},"
        f" {found.rollbacks:,} of {found.commits + found.rollbacks:,} transactions rolled back,"
        f" {found.deadlocks} deadlocks, {found.temporary_bytes:,} bytes of temporary files",
        highlight=False,
        soft_wrap=True,
    )
    tables = table("table", "rows", "dead rows", "bytes", "bytes of indexes", "last vacuum", "last analyze")
    for one in found.tables:
        last = [f"{at:%Y-%m-%d %H:%M}" if at is not None else "never" for at in (one.vacuumed, one.analyzed)]
        tables.add_row(
            one.table, f"{one.rows:,}", f"{one.dead:,}", f"{one.table_bytes:,}", f"{one.index_bytes:,}", *last
        )
    indexes = table("index", "table", "bytes", "scans")
    for index in found.indexes:
        indexes.add_row(index.name, index.table, f"{index.bytes:,}", f"{index.scans:,}")
    partitions = table("partition", "rows", "bytes")
    for part in found.partitions:
        partitions.add_row(part.name, f"{part.rows:,}", f"{part.bytes:,}")
    for shown in (tables, indexes, partitions):
        console.print()
        console.print(shown)
    console.print()
    if found.statements is None:
        console.print("expensive statements are not known: pg_stat_statements is not loaded, or not for this role")
        return
    statements = table("statement", "calls", "total ms", "mean ms", "rows")
    for each in found.statements:
        statements.add_row(
            escape(each.query[:90]), f"{each.calls:,}", f"{each.total_ms:,.0f}", f"{each.mean_ms:.2f}", f"{each.rows:,}"
        )
    console.print(statements)


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
    board = Scoreboard(settled.workers)
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
                _run(_work(settled, Peers(board, number, folder)))
            except SettingsError as wrong:
                return _said(wrong, 2)
            except StreamerError as failed:
                return _said(failed, 1)
            return 0

        _preload()
        return Workers(
            board, work, stuck_after=settled.stuck_after + 2.0, drain_timeout=settled.drain_timeout, ready=ready
        ).run()


async def _work(configured: Settings, peers: Peers) -> None:
    with Watchdog(configured.stuck_after) as watchdog:
        async with _interrupt() as interrupt, app.serving(configured, peers):
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
    line(f"  Redis       {config_values.masked_redis(developed.redis)}")
    line(f"  all URLs with their passwords: {data / SERVICES}")
    line()
    line("try next", "bold")
    line("  see them move: the live map, and the page that makes a phone's browser a vendor:")
    line(f"    {url}/    {url}/vendor")
    line("  who is near just now:")
    line(f"    curl '{url}/v1/vendors/nearby?lat=52.2297&long=21.0122&radius=2000'")
    line("  watch them (README.md, For the customer app; saved as customer.py):")
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
    url = (configured or config_values.load(NEEDS_DATABASE)).database_url
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
