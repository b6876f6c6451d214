"""`streamer db …`: schema, data, backups and maintenance of the database."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamer.cli import config
from streamer.cli.process import Steps
from streamer.errors import DatabaseError, SettingsError
from streamer.operations import maintenance
from streamer.operations.backup import archive, files
from streamer.settings import Settings
from streamer.storage import audit as audits
from streamer.storage import revisions, roles
from streamer.storage import seed as seeds
from streamer.storage.dsn import parse_url, quoted

db = typer.Typer(name="db", help="Schema, data, backups and maintenance of the database.", no_args_is_help=True)

MINUTE = timedelta(minutes=1)
NEEDS_DATABASE: Mapping[tuple[str, ...], str] = {("database_url",): "which PostgreSQL is meant"}


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(help="Migration to upgrade to.")] = "head") -> None:
    """Migrate the schema to the newest version."""
    from streamer.storage import migrate  # imports Alembic, which half of these commands do not need

    url = _database_url()
    asyncio.run(migrate.upgrade(url, revision))
    _print_revision(url)


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="Migration to downgrade to; `base` for an empty database.")],
) -> None:
    """Revert migrations."""
    from streamer.storage import migrate

    url = _database_url()
    asyncio.run(migrate.downgrade(url, revision))
    _print_revision(url)


@db.command()
def adopt(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; list the rows that prevent adoption.")
    ] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Restore the database as Prisma made it.")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="Drop the old table. This can't be reverted.")] = False,
) -> None:
    """Adopt a database made by Prisma, in place, while its gateway keeps writing. Continues an interrupted run."""
    from streamer.storage import adopt as adoption

    url = _database_url()
    if dry_run + revert + finish > 1:
        raise SettingsError("--dry-run, --revert and --finish exclude each other: give one of them")
    if dry_run:
        plan = asyncio.run(adoption.plan(url))
        typer.echo(f"{plan.rows:,} locations (estimated) of {len(plan.days)} days will be copied")
        if plan.other_ids:
            typer.echo(
                f"{plan.other_ids:,} of them have ids without a timestamp: they keep these ids, in locations_default"
            )
        for obstacle in plan.obstacles:
            typer.echo(f"obstacle: {obstacle.line()}")
        if plan.obstacles:
            raise DatabaseError("the database can't be adopted until these obstacles are removed")
        typer.echo("no obstacles: run `streamer db adopt`")
        return
    if finish:
        asyncio.run(adoption.finish(url))
        typer.echo("the old table is dropped")
        return
    with Steps(Console(stderr=True, soft_wrap=True)) as steps:
        done = asyncio.run((adoption.revert if revert else adoption.adopt)(url, steps))
    typer.echo(f"copied {done.copied:,} locations; the tables were locked for {done.held * 1000:.0f} ms")
    if not revert:
        typer.echo("next: `streamer db check`, then `streamer db grant ROLE` for the role of `serve`")
        typer.echo("`streamer db adopt --revert` undoes this, until `streamer db adopt --finish` drops the old table")


@db.command()
def reset(yes: Annotated[bool, typer.Option("--yes", help="Allow it outside development.")] = False) -> None:
    """Drop all tables with their data, and create them again."""
    from streamer.storage import migrate

    configured = config.load(NEEDS_DATABASE)
    url = _database_url(configured)
    if configured.env != "development" and not yes:
        raise DatabaseError(
            f"reset deletes everything in {parse_url(url).masked()}; add --yes, or set STREAMER_ENV=development"
        )
    asyncio.run(migrate.reset(url))
    _print_revision(url)


@db.command()
def grant(
    role: Annotated[str, typer.Argument(help="The role for `serve`; created if it does not exist.")],
    password_file: Annotated[
        typer.FileText | None, typer.Option(help="File whose first line is its password; - for stdin.")
    ] = None,
) -> None:
    """Grant a role exactly the privileges that `serve` needs. Run it as the owner of the tables."""
    password = None if password_file is None else password_file.readline().rstrip("\r\n")
    url = _database_url()
    done = asyncio.run(roles.grant(url, role, password))
    typer.echo(f"role {role} {'was created and ' if done.created else ''}has the privileges of `serve`")
    if done.created and password is None:
        typer.echo("it has no password: set one with --password-file, unless it authenticates otherwise", err=True)
    if not done.login:
        typer.echo(f"it can't log in: ALTER ROLE {quoted(role)} LOGIN, or grant it to a role that can", err=True)
    for more in done.beyond:
        typer.echo(f"it also has {more}, through PUBLIC or a role it is a member of: revoke it there", err=True)


@db.command()
def audit(
    since: Annotated[str | None, typer.Option(help="Maximum age of entries, like 90m, 24h or 30d.")] = None,
    table: Annotated[str | None, typer.Option(help="Table: users, vendors, subscriptions or integrations.")] = None,
    id: Annotated[str | None, typer.Option(help="Id of the row.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of entries.", min=1, max=100_000)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each entry.")] = False,
) -> None:
    """Print changes of users, vendors, subscriptions and integrations: actor, old and new values; newest first."""
    begin = None if since is None else _ago("--since", since)
    for entry in asyncio.run(audits.audited(_database_url(), since=begin, table=table, row_id=id, limit=limit)):
        typer.echo(json.dumps(entry.fields()) if as_json else entry.line())


@db.command()
def seed(
    vendors: Annotated[
        int | None, typer.Option(help="Number of users, with one vendor each.", min=1, max=1_000_000)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each vendor.")] = False,
) -> None:
    """Add the test user and vendor, or many. Existing ones stay unchanged."""
    seeded = asyncio.run(seeds.seed(_database_url(), vendors))
    if as_json:
        for one in seeded:
            typer.echo(json.dumps({"vendorId": one.vendor_id, "clerkId": one.clerk_id, "name": one.name}))
    else:
        typer.echo(f"{len(seeded)} vendors exist")


@db.command()
def backup(
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Destination folder; default: STREAMER_BACKUP_DIR.")
    ] = None,
    keep_days: Annotated[int, typer.Option(help="Then remove older backups, except the newest.", min=1)] = 7,
    to: Annotated[str | None, typer.Option(help="Encrypt to this age or SSH public key.", metavar="KEY")] = None,
) -> None:
    """Write a backup, complete or not at all, with count and checksum of the rows of each table."""
    configured = config.load(NEEDS_DATABASE)
    folder = _backup_folder(configured, folder)
    began = time.monotonic()
    path = asyncio.run(archive.backup(_database_url(configured), folder, recipient=to))
    manifest = files.Manifest.read(path)
    typer.echo(
        f"{path}: {manifest.bytes:,} bytes, {manifest.rows:,} rows of {len(manifest.tables)} tables,"
        f" in {time.monotonic() - began:.1f} s"
    )
    for removed in files.remove_old(folder, keep_days):
        typer.echo(f"removed {removed}, older than {keep_days} days")


Identity = Annotated[Path | None, typer.Option(help="File with the private key of an encrypted backup.")]


@db.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup file, with its manifest (.json) beside it.")],
    identity: Identity = None,
) -> None:
    """Restore a backup into the empty DATABASE_URL, completely or not at all, and verify every row."""
    url = _database_url()
    manifest = asyncio.run(archive.restore(url, file, identity=identity))
    typer.echo(f"restored {manifest.rows:,} rows of {len(manifest.tables)} tables, as they were at {manifest.at}")
    typer.echo("next: `streamer db upgrade`, which creates the partitions of the coming days")


@db.command()
def prove(
    file: Annotated[Path | None, typer.Argument(help="A backup file; default: the newest in --dir.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Folder of backups; default: STREAMER_BACKUP_DIR.")
    ] = None,
    identity: Identity = None,
    on: Annotated[
        str | None, typer.Option(help="Server to restore to; the role must be able to create databases.", metavar="URL")
    ] = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder for a temporary PostgreSQL.")] = None,
) -> None:
    """Verify the newest backup: restore it into a temporary database and compare every row. Run it on a schedule."""
    dump = file or files.newest(_backup_folder(config.load(), folder)).path
    with Steps(Console(stderr=True, soft_wrap=True)) as steps:
        proof = asyncio.run(archive.prove(dump, identity=identity, on=on, scratch=scratch, progress=steps))
    typer.echo(
        f"{proof.path} is good: {proof.manifest.rows:,} rows of {len(proof.manifest.tables)} tables, as they were at"
        f" {proof.manifest.at}, restored in {proof.seconds:.1f} s"
    )
    for difference in proof.differences:
        typer.echo(f"note: its schema differs from this version's: {difference}")


@db.command()
def prune(
    older_than: Annotated[str | None, typer.Option(help="Like 30d or 12w; default: STREAMER_RETENTION.")] = None,
    audit_older_than: Annotated[str, typer.Option(help="The same for audit entries.")] = "365d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Drop nothing; list what would be dropped.")] = False,
) -> None:
    """Drop old days of locations and old audit entries."""
    configured = config.load(NEEDS_DATABASE)
    days = configured.retention if older_than is None else maintenance.days_of(older_than)
    audit_days = maintenance.days_of(audit_older_than, "--audit-older-than")
    pruned = asyncio.run(
        maintenance.prune(_database_url(configured), days, audit_days, configured.alert_retention, dry_run=dry_run)
    )
    verb = "would drop" if dry_run else "dropped"
    for partition in pruned.partitions:
        typer.echo(f"{verb} {partition.name}: about {partition.rows:,} rows, {partition.bytes:,} bytes")
    if pruned.rows:
        typer.echo(f"{verb} {pruned.rows:,} rows of locations_default")
    if pruned.entries:
        typer.echo(f"{verb} {pruned.entries:,} audit entries")
    if pruned.alerts:
        typer.echo(f"{verb} {pruned.alerts:,} rows of alerts that ended")
    if not (pruned.partitions or pruned.rows or pruned.entries or pruned.alerts):
        typer.echo(f"nothing is older than {pruned.before}")


@db.command()
def thin(
    older_than: Annotated[str, typer.Option(help="Like 7d or 4w; at least 3d.")] = "7d",
    keep: Annotated[int, typer.Option(help="Seconds between two locations that are kept.", min=1, max=3600)] = 60,
) -> None:
    """Keep one location a minute of older days. Run it on a schedule: days already thinned are skipped."""
    days = maintenance.days_of(older_than)
    if days < 3:
        raise SettingsError(f"--older-than must be at least 3d, not {older_than!r}: pings arrive late")
    thinned = asyncio.run(maintenance.thin(_database_url(), days, keep))
    for day in thinned:
        typer.echo(f"thinned {day.name}: deleted {day.rows:,} rows")
    if not thinned:
        typer.echo("no day to thin")


@db.command()
def erase(
    id: Annotated[str, typer.Argument(help="vendors.id, users.id or users.clerkId.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase a vendor, or a user with all vendors, permanently: rows, locations, audit, Redis, the position stream."""
    from streamer.operations import privacy  # imports the client of Redis

    configured = config.load(NEEDS_DATABASE)
    if not yes:
        typer.confirm(f"erase everything stored of {id}? This can't be undone", abort=True)
    redis_url = None if configured.redis_url is None else configured.redis_url.get_secret_value()
    with Steps(Console(stderr=True, soft_wrap=True)) as steps:
        done = asyncio.run(
            privacy.erase(
                _database_url(configured),
                redis_url,
                id,
                stream_key=configured.feed_key,
                backup_dir=configured.backup_dir,
                progress=steps,
            )
        )
    typer.echo("erased " + ", ".join(f"{rows:,} rows of {table}" for table, rows in done.rows.items()))
    if redis_url is None:
        typer.echo("REDIS_URL is not set: entries in Redis expire within a day", err=True)
    for one in done.backups:
        typer.echo(f"note: the backup {one.path} of {one.at:%Y-%m-%d} still contains it, until it is deleted")
    if not done.backups:
        typer.echo("note: backups elsewhere contain it until they are deleted")


@db.command()
def export(
    vendor: Annotated[str, typer.Argument(help="vendors.id.")],
    to: Annotated[Path | None, typer.Option(help="Archive to write; default: VENDOR.zip.")] = None,
) -> None:
    """Write everything stored of a vendor into a ZIP archive: JSON, GeoJSON, GPX."""
    from streamer.operations import privacy

    target = to or Path(f"{re.sub(r'[^A-Za-z0-9_-]', '_', vendor)}.zip")
    count = asyncio.run(privacy.export(_database_url(), vendor, target))
    typer.echo(f"{target}: {count:,} locations")


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
    """List differences between the database and what this version needs; exit status 1 if there are any."""
    url = _database_url()
    differences = asyncio.run(maintenance.check(url))
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise DatabaseError(f"{parse_url(url).masked()}: {len(differences)} differences")
    typer.echo(f"{parse_url(url).masked()} is what this version needs")


def _backup_folder(configured: Settings, given: Path | None) -> Path:
    folder = given or configured.backup_dir
    if folder is None:
        raise SettingsError("no folder of backups: add --dir, or set STREAMER_BACKUP_DIR")
    return folder


def _show_stats(console: Console, found: maintenance.Stats) -> None:
    def table(*columns: str) -> Table:
        made = Table(box=None, pad_edge=False)
        for number, column in enumerate(columns):
            made.add_column(column, justify="left" if number == 0 else "right")
        return made

    hits = "no reads yet" if found.cache_hits is None else f"{found.cache_hits:.2%}"
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
        console.print("no statement statistics: pg_stat_statements is not loaded, or this role can't read it")
        return
    statements = table("statement", "calls", "total ms", "mean ms", "rows")
    for each in found.statements:
        statements.add_row(
            escape(each.query[:90]), f"{each.calls:,}", f"{each.total_ms:,.0f}", f"{each.mean_ms:.2f}", f"{each.rows:,}"
        )
    console.print(statements)


def _database_url(configured: Settings | None = None) -> str:
    url = (configured or config.load(NEEDS_DATABASE)).database_url
    assert url is not None
    return url.get_secret_value()


def _ago(option: str, given: str) -> datetime:
    """Returns the time an age like 90m, 24h or 30d ago."""
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", given)
    if found is None:
        raise SettingsError(f"{option} must be like 90m, 24h or 30d, not {given!r}")
    try:
        return datetime.now(UTC) - int(found[1]) * {"m": MINUTE, "h": 60 * MINUTE, "d": 24 * 60 * MINUTE}[found[2]]
    except OverflowError:
        raise SettingsError(f"{option} must be at most 700000d, not {given!r}") from None


def _print_revision(url: str) -> None:
    revision = asyncio.run(revisions.revision(url))
    typer.echo(f"{parse_url(url).masked()} is at migration {revision or 'none'}")
