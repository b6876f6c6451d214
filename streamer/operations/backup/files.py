"""The files of backups: their names, manifests and proofs, each complete or absent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, NamedTuple

import structlog

from streamer.errors import DatabaseError, SettingsError

log = structlog.get_logger()

NAME = re.compile(r"(?P<database>.+)-(?P<at>\d{8}T\d{6}Z)\.dump(\.age)?")
STAMP = "%Y%m%dT%H%M%SZ"
UNFINISHED = ".unfinished-"
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

    @property
    def rows(self) -> int:
        """The number of rows of all tables."""
        return sum(table.rows for table in self.tables.values())

    @classmethod
    def read(cls, dump: Path) -> Manifest:
        """Returns the manifest of a backup; raises DatabaseError if it can't be read."""
        path = manifest_of(dump)
        try:
            given = json.loads(path.read_bytes())
            tables = {name: Counted(*counted) for name, counted in given.pop("tables").items()}
            return cls(**given, tables=tables)
        except (OSError, ValueError, TypeError, KeyError) as wrong:
            raise DatabaseError(
                f"the manifest {path} can't be read, {wrong!r}: put the one that was made with the backup there"
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


def make_folder(folder: Path) -> None:
    """Creates the folder of the backups; raises SettingsError when it cannot be written to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("it can't be written to")
    except OSError as refused:
        raise SettingsError(f"--dir {folder} can't be used: {refused.strerror or refused}; choose another") from None


@contextlib.contextmanager
def complete(path: Path) -> Iterator[IO[bytes]]:
    """Opens a private file that gets its name once it is complete and on the disk."""
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
            f"{path} can't be written: {error.strerror or error}; make room or choose another --dir; no incomplete file"
            " was left"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes a value as JSON, complete or not at all."""
    with complete(path) as file:
        # Readable by the group, for the server's metrics. Only the owner can read the backup itself.
        os.fchmod(file.fileno(), 0o640)
        file.write(json.dumps(value, indent=1).encode() + b"\n")
