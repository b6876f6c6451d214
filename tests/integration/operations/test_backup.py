"""Backups, and that they can be restored."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pyrage
import pytest

from streamer.errors import DatabaseError, SettingsError, Unavailable
from streamer.ingest.copy_rows import RowEncoder, decode_rows
from streamer.operations.backup.archive import backup, compared, prove, restore
from streamer.operations.backup.files import (
    UNFINISHED,
    Backups,
    Counted,
    Manifest,
    found,
    manifest_of,
    proof_of,
    remove_old,
)
from streamer.operations.backup.streams import Digest, program_of, sha256
from streamer.storage import drift, migrate, queries, revisions, seed
from tests.support.commands import run

NOW = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
async def filled(database_url: str) -> str:
    """A database with vendors and their pings, also rows in the default partition."""
    vendors = await seed.seed(database_url, 20)
    connection = await asyncpg.connect(database_url)
    rows = []
    for number, vendor in enumerate(vendors):
        pings = [(1_900_000_000_000 + number * 1000 + n, 52.1 + n / 1e6, 21.0) for n in range(50)]
        pings += [(int(datetime.now(UTC).timestamp() * 1000) + n, 1e-300, -179.999999999999) for n in range(10)]
        for id, vendor_id, lat, long, ms in stored(vendor.vendor_id, pings):
            rows.append((id, vendor_id, lat, long, datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None)))
    await connection.copy_records_to_table(
        "locations", records=rows, columns=["id", "vendorId", "lat", "long", "timestamp"]
    )
    odd = "a;\nb'\"c\\"
    await connection.execute('UPDATE "vendors" SET "name" = $2 WHERE "id" = $1', vendors[0].vendor_id, odd)
    await connection.close()
    return database_url


def stored(vendor_id: str, pings: list[tuple[int, float, float]]) -> list[Any]:
    encoder = RowEncoder(vendor_id)
    rows = encoder.encode(pings)
    return decode_rows(rows, len(rows) // len(pings))


async def everything(url: str) -> dict[str, list[Any]]:
    """Returns all rows of all tables."""
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch(queries.ALL_TABLES, None)
        return {
            name: [tuple(row) for row in await connection.fetch(f'SELECT * FROM "{space}"."{name}" t ORDER BY t::text')]
            for space, name in tables
        }
    finally:
        await connection.close()


async def test_a_restored_database_equals_the_backed_up_one(
    filled: str, empty_database_url: str, tmp_path: Path
) -> None:
    """All rows of all tables are restored, and the server runs on the result."""
    path = await backup(filled, tmp_path, now=NOW)
    assert path.name.endswith("-20310102T030405Z.dump")
    assert path.stat().st_mode & 0o077 == 0, "for nobody else to read"
    assert manifest_of(path).stat().st_mode & 0o077 == 0o040, "the server's metrics need the manifest"
    manifest = await restore(empty_database_url, path)
    before, after = await everything(filled), await everything(empty_database_url)
    assert after == before
    assert len(before["locations"]) == 20 * 60
    assert manifest.tables["public.locations"].rows == 20 * 60
    assert manifest.revision == revisions.head()
    assert await drift.drift(empty_database_url) == []
    await migrate.upgrade(empty_database_url)
    await revisions.require_newest(empty_database_url)


async def test_restore_destroys_nothing(filled: str, database_url: str, tmp_path: Path) -> None:
    """A restore into the production database by mistake is refused."""
    path = await backup(filled, tmp_path)
    before = await everything(filled)
    with pytest.raises(DatabaseError, match="is not empty"):
        await restore(filled, path)
    assert await everything(filled) == before


async def test_a_damaged_backup(filled: str, empty_database_url: str, tmp_path: Path) -> None:
    """A flipped bit is detected before anything is restored; a lost manifest is named."""
    path = await backup(filled, tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatabaseError, match="is damaged"):
        await restore(empty_database_url, path)
    manifest_of(path).unlink()
    with pytest.raises(DatabaseError, match=r"manifest .* can't be read"):
        await restore(empty_database_url, path)
    assert await everything(empty_database_url) == {}


async def test_whole_or_not_at_all(filled: str, empty_database_url: str, tmp_path: Path) -> None:
    """A truncated dump with a matching manifest leaves the database empty."""
    path = await backup(filled, tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    manifest = json.loads(manifest_of(path).read_text())
    manifest["sha256"] = sha256(path)
    manifest_of(path).write_text(json.dumps(manifest))
    with pytest.raises(DatabaseError, match="pg_restore"):
        await restore(empty_database_url, path)
    assert await everything(empty_database_url) == {}


async def test_missing_rows_are_reported(filled: str, empty_database_url: str, tmp_path: Path) -> None:
    """A restore that lacks a row must fail."""
    path = await backup(filled, tmp_path)
    manifest = json.loads(manifest_of(path).read_text())
    manifest["tables"]["public.vendors"][0] += 1
    manifest_of(path).write_text(json.dumps(manifest))
    with pytest.raises(DatabaseError, match="vendors has 20 rows instead of 21"):
        await restore(empty_database_url, path)


def test_compared() -> None:
    """Each kind of difference between tables is reported."""
    one = {"a": Counted(1, "x"), "b": Counted(2, "y"), "c": Counted(3, "z")}
    two = {"a": Counted(1, "other"), "b": Counted(4, "y"), "d": Counted(0, "0")}
    assert compared(one, one) == []
    assert compared(one, two) == [
        "a has different contents",
        "b has 4 rows instead of 2",
        "c is missing",
        "d is new",
    ]


async def test_encrypted(filled: str, empty_database_url: str, tmp_path: Path) -> None:
    """An encrypted backup can't be read without the key, and can be restored with it."""
    key, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    path = await backup(filled, tmp_path, recipient=str(key.to_public()))
    assert path.name.endswith(".dump.age")
    assert path.read_bytes().startswith(b"age-encryption.org/v1")
    assert b"PGDMP" not in path.read_bytes()
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.write_text(f"# made for the test\n{key}\n")
    theirs.write_text(str(other))
    for identity, said in ((None, "--identity"), (theirs, "right key"), (tmp_path / "none", "usable private key")):
        with pytest.raises((SettingsError, DatabaseError), match=said):
            await restore(empty_database_url, path, identity=identity)
    assert await everything(empty_database_url) == {}
    await restore(empty_database_url, path, identity=mine)
    assert await everything(empty_database_url) == await everything(filled)
    with pytest.raises(SettingsError, match="is no public key"):
        await backup(filled, tmp_path, recipient="age1nonsense")


async def test_a_full_disk_leaves_nothing(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed backup must leave no file that looks complete."""

    def full(self: Digest, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Digest, "write", full)
    with pytest.raises(DatabaseError, match=r"No space left on device.*make room"):
        await backup(filled, tmp_path)
    assert os.listdir(tmp_path) == []


async def test_a_database_that_is_away(tmp_path: Path, unused_tcp_port: int) -> None:
    """The error names the database without its password, and no file is left."""
    with pytest.raises(Unavailable) as said:
        await backup(f"postgresql://u:hidden@127.0.0.1:{unused_tcp_port}/venta", tmp_path)
    assert "can't be reached" in str(said.value)
    assert "hidden" not in str(said.value)
    assert os.listdir(tmp_path) == []


async def test_a_schema_of_its_own(empty_database_url: str, database_url: str, tmp_path: Path) -> None:
    """With ?schema= only that schema is backed up, and restored under its name."""
    url = f"{empty_database_url}?schema=venta"
    await migrate.upgrade(url)
    await seed.seed(url, 2)
    path = await backup(url, tmp_path)
    manifest = Manifest.read(path)
    assert manifest.schema == "venta"
    assert manifest.tables["venta.vendors"].rows == 2
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("DROP SCHEMA venta CASCADE")
    await connection.close()
    await restore(url, path)
    assert await drift.drift(url) == []


def make(folder: Path, at: datetime) -> Path:
    path = folder / f"venta_db-{at:%Y%m%dT%H%M%SZ}.dump"
    for each in (path, manifest_of(path), proof_of(path)):
        each.write_text(json.dumps({"at": at.isoformat()}))
    return path


def test_old_ones_are_removed(tmp_path: Path) -> None:
    """A week of backups is kept, always at least the newest; other files are never deleted."""
    days = [make(tmp_path, NOW - timedelta(days=n)) for n in range(10)]
    others = [tmp_path / "notes.txt", tmp_path / "venta_db-20200101T000000Z.dump"]  # the second has no manifest
    for other in others:
        other.write_text("mine")
    abandoned = tmp_path / f"{UNFINISHED}x"
    abandoned.write_text("half")
    os.utime(abandoned, (0, 0))
    assert remove_old(tmp_path, 7, now=NOW) == [days[9], days[8]]
    assert {path.name for path in tmp_path.iterdir()} == {
        each.name for path in days[:8] for each in (path, manifest_of(path), proof_of(path))
    } | {other.name for other in others}
    assert remove_old(tmp_path, 1, now=NOW + timedelta(days=400)) == days[7:0:-1]
    assert [each.path for each in found(tmp_path)] == days[:1]


def test_a_server_tells_the_age(tmp_path: Path) -> None:
    """Operators detect missing backups by their age."""
    backups = Backups(tmp_path)
    backups.look()
    assert (backups.last, backups.proven) == (0.0, 0.0)
    make(tmp_path, NOW - timedelta(days=1))
    proof_of(make(tmp_path, NOW)).unlink()
    backups.look()
    assert backups.last == NOW.timestamp()
    assert backups.proven == (NOW - timedelta(days=1)).timestamp()
    shutil.rmtree(tmp_path)
    backups.look()
    assert backups.last == 0.0


async def test_proved(filled: str, tmp_path: Path) -> None:
    """A backup is verified by restoring it into a separate PostgreSQL; the original one is not touched."""
    path = await backup(filled, tmp_path)
    proof = await prove(path)
    assert proof.differences == []
    assert proof.manifest.tables["public.locations"].rows == 20 * 60
    assert json.loads(proof_of(path).read_text())["sha256"] == proof.manifest.sha256


async def test_proved_on_a_server(filled: str, tmp_path: Path) -> None:
    """A backup is verified in a scratch database that is dropped afterwards, also if the verification fails."""
    path = await backup(filled, tmp_path)
    await prove(path, on=filled)
    path.write_bytes(b"")
    proof_of(path).unlink()
    with pytest.raises(DatabaseError, match="is damaged"):
        await prove(path, on=filled)
    assert not proof_of(path).exists()
    connection = await asyncpg.connect(filled)
    assert await connection.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'streamer_prove%'") == []
    await connection.close()


def test_a_program_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump refuses a newer server; the error must say what to install."""
    with pytest.raises(SettingsError, match="postgresql-client-99"):
        program_of("pg_dump", 99)


async def test_the_commands(filled: str, empty_database_url: str, tmp_path: Path) -> None:
    """The commands of backup, verification and restore, as called by cron and an operator."""
    folder = {"STREAMER_BACKUP_DIR": str(tmp_path / "backups")}
    done = await run("db", "backup", folder=tmp_path, DATABASE_URL=filled, **folder)
    assert done.status == 0, done.err
    assert "1,2" in done.out
    assert "rows of" in done.out
    path = done.out.partition(":")[0]
    done = await run("db", "prove", "--on", filled, folder=tmp_path, **folder)
    assert done.status == 0, done.err
    assert "is good: 1,2" in done.out
    refused, done, nowhere, unsaid = await asyncio.gather(
        run("db", "restore", path, folder=tmp_path, DATABASE_URL=filled),
        run("db", "restore", path, folder=tmp_path, DATABASE_URL=empty_database_url),
        run("db", "prove", folder=tmp_path, STREAMER_BACKUP_DIR=str(tmp_path / "nowhere")),
        run("db", "backup", folder=tmp_path, DATABASE_URL=filled),
    )
    assert (refused.status, "is not empty" in refused.err) == (1, True), refused
    assert (done.status, "streamer db upgrade" in done.out) == (0, True), done
    assert (nowhere.status, "can't be read" in nowhere.err) == (2, True), nowhere
    assert (unsaid.status, "STREAMER_BACKUP_DIR" in unsaid.err) == (2, True), unsaid
