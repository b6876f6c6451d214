"""Backups: pg_dump's custom format with a manifest; restored into empty databases only; verified by restoring.

A backup is two files: `venta_db-20310101T030000Z.dump` (`….dump.age` when encrypted with age), and the same name with
`.json` appended: the manifest, with the count and a checksum of the rows of each table, taken from the snapshot that
was dumped. `….proven.json` records that it was restored and had all of them. Each file is complete or absent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from streamer.errors import DatabaseError, EmbeddedError, SettingsError
from streamer.operations.backup.files import (
    STAMP,
    Counted,
    Manifest,
    complete,
    make_folder,
    manifest_of,
    proof_of,
    write_json,
)
from streamer.operations.backup.streams import (
    Digest,
    Pump,
    conninfo,
    copy,
    program_of,
    pumped,
    running,
    sealing,
    sha256,
    unsealing,
)
from streamer.operations.embedded import PostgresServer
from streamer.storage import queries, revisions
from streamer.storage.connections import connected
from streamer.storage.dsn import DatabaseUrl, parse_url, quoted

LONGEST = 86_400.0
LOCK_WAIT_MS = 60_000


async def backup(url: str, folder: Path, *, recipient: str | None = None, now: datetime | None = None) -> Path:
    """Writes a backup of the database (or of the URL's schema) into a folder, complete or not at all; returns its path.

    `recipient` is an age public key (`age1…`) or an SSH one (`ssh-ed25519 …`): only its holder can read the backup.
    """
    parsed = parse_url(url)
    seal = sealing(recipient) if recipient is not None else None
    at = now or datetime.now(UTC)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.]', '_', parsed.database)}-{at:{STAMP}}.dump{'.age' if seal else ''}"
    began = time.monotonic()
    make_folder(folder)
    async with connected(url, LONGEST) as connection:
        major = connection.get_server_version().major
        command = [program_of("pg_dump", major), "--format=custom", "--compress=gzip", "--no-password"]
        command += [f"--lock-wait-timeout={LOCK_WAIT_MS}", "--no-owner", "--no-acl"]
        if parsed.schema is not None:
            command.append(f"--schema={quoted(parsed.schema)}")
        # The dump uses this transaction's snapshot.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            with complete(path) as file:
                digest = Digest(file)
                await _dumped([*command, f"--snapshot={snapshot}"], parsed, digest, seal)
                tables = await _counted(connection, parsed.schema)
                manifest = Manifest(
                    parsed.database,
                    parsed.schema,
                    await revisions.revision_of(connection),
                    major,
                    at.isoformat(timespec="seconds"),
                    round(time.monotonic() - began, 1),
                    digest.bytes,
                    digest.hexdigest(),
                    tables,
                )
                # The manifest is written first, so that there is no backup without one.
                write_json(manifest_of(path), asdict(manifest))
    return path


async def restore(url: str, dump: Path, *, identity: Path | None = None) -> Manifest:
    """Restores a backup into an empty database, complete or not at all, and compares every row.

    `identity` is the file with the private key of an encrypted one. DatabaseError when the database holds anything, or
    the backup is damaged.
    """
    parsed = parse_url(url)
    manifest = Manifest.read(dump)
    unseal = unsealing(dump, identity)
    async with connected(url, LONGEST) as connection:
        present = await connection.fetch(queries.ALL_TABLES, None)
        if present:
            raise DatabaseError(
                f"{parsed.masked()} is not empty, it has {len(present)} tables ({present[0][1]}, …): restore needs a"
                " new database, so that it can destroy nothing; create one and name it in DATABASE_URL"
            )
        major = connection.get_server_version().major
        command = [program_of("pg_restore", max(major, manifest.postgresql)), "--single-transaction", "--exit-on-error"]
        command += ["--no-owner", "--no-acl", "--no-password", f"--dbname=dbname={conninfo(parsed.database)}"]
        # The dump creates a schema other than `public`, which exists already.
        await _restored(command, parsed, dump, manifest, unseal)
        differences = compared(manifest.tables, await _counted(connection, manifest.schema))
        if differences:
            raise DatabaseError(f"{dump} was restored, but differs from its manifest: {'; '.join(differences)}")
        await connection.execute("ANALYZE")
    return manifest


def compared(wanted: dict[str, Counted], present: dict[str, Counted]) -> list[str]:
    """Returns a line for each table that differs."""
    said = []
    for name in sorted(wanted.keys() | present.keys()):
        if name not in present:
            said.append(f"{name} is missing")
        elif name not in wanted:
            said.append(f"{name} is new")
        elif wanted[name].rows != present[name].rows:
            said.append(f"{name} has {present[name].rows} rows instead of {wanted[name].rows}")
        elif wanted[name].checksum != present[name].checksum:
            said.append(f"{name} has different contents")
    return said


class Proof(NamedTuple):
    """A backup that was restored and is complete."""

    path: Path
    manifest: Manifest
    seconds: float
    differences: list[str]
    """Differences of its schema from what this version needs; they do not make the backup bad."""


async def prove(
    dump: Path,
    *,
    identity: Path | None = None,
    on: str | None = None,
    scratch: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Restores a backup into a scratch database, compares every table with the manifest, and drops the database.

    The database is on a temporary PostgreSQL in the folder `scratch`, or on the server `on`, whose role must be able to
    create databases. Writes the proof beside the backup.
    """
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        if on is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamer-prove-", dir=scratch)))
            os.chmod(folder, 0o711)  # PostgreSQL may run as another user, who must be able to enter
            try:
                server = PostgresServer(folder, durable=False, progress=progress)
                url = (await stack.enter_async_context(server)).url
            except EmbeddedError as absent:
                raise SettingsError(
                    f"a PostgreSQL to restore into can't be started here: {absent}; install venta-streamer[dev], or"
                    " name a server with --on URL whose role may create databases"
                ) from None
        else:
            url = await stack.enter_async_context(_scratch_database(on))
        progress(f"restoring {dump}")
        manifest = await restore(url, dump, identity=identity)
        from streamer.storage.drift import drift  # imports SQLAlchemy, which a server does not need

        differences = await drift(url) if manifest.schema is None else []
    seconds = round(time.monotonic() - began, 1)
    proof = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds, "sha256": manifest.sha256}
    write_json(proof_of(dump), proof)
    return Proof(dump, manifest, seconds, differences)


@contextlib.asynccontextmanager
async def _scratch_database(on: str) -> AsyncIterator[str]:
    parsed = parse_url(on)
    name = f"streamer_prove_{os.getpid()}_{time.time_ns() // 1_000_000}"
    async with connected(on) as connection:
        await connection.execute(f"CREATE DATABASE {quoted(name)} TEMPLATE template0")
    try:
        yield parsed.url_of(name)
    finally:
        async with connected(on) as connection:
            await connection.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


async def _dumped(command: Sequence[str], parsed: DatabaseUrl, digest: Digest, seal: Pump | None) -> None:
    with running(command, parsed, stdout=subprocess.PIPE) as program:
        await pumped(program, seal or copy, program.process.stdout, digest, digest)


async def _restored(command: Sequence[str], parsed: DatabaseUrl, dump: Path, manifest: Manifest, unseal: Pump) -> None:
    # First, as it is better to detect a damaged file before hours of restoring.
    if (seen := await asyncio.to_thread(sha256, dump)) != manifest.sha256:
        raise DatabaseError(
            f"{dump} is damaged: its SHA-256 is {seen}, it was made with {manifest.sha256}; take another backup"
        )
    with open(dump, "rb") as file, running(command, parsed, stdin=subprocess.PIPE) as program:  # noqa: ASYNC230
        digest = Digest(file)
        await pumped(program, unseal, digest, program.process.stdin, digest)


async def _counted(connection: Any, schema: str | None) -> dict[str, Counted]:
    """Returns rows and checksum of every table, as the connection sees them."""
    await connection.execute("SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET extra_float_digits = 1")
    tables = {}
    for space, name in await connection.fetch(queries.ALL_TABLES, schema):
        row = await connection.fetchrow(queries.ROW_CHECKSUM.format(f"{quoted(space)}.{quoted(name)}"))
        tables[f"{space}.{name}"] = Counted(*row)
    return tables
