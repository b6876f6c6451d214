"""Data of one person: the export of everything stored of a vendor, and the erasure of a vendor or user."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import orjson

from streamer.broker.erasure import erase_vendors
from streamer.errors import DatabaseError
from streamer.operations.backup import files
from streamer.protocol import history
from streamer.protocol.history import Format, LocationRow
from streamer.storage import queries
from streamer.storage.connections import connected, delete_in_batches, row_count
from streamer.storage.dsn import parse_url
from streamer.storage.revisions import require_newest

STATEMENT_TIMEOUT = 600.0
BATCH = 10_000
"""Locations of one transaction."""
NOTICED_WITHIN = 10.0
"""Seconds until every server has closed the connections of a deleted vendor: several times the poll interval."""
PAGE = 10_000

Progress = Callable[[str], None]


class NobodyToErase(DatabaseError):
    """There is neither a vendor nor a user of this id."""


@dataclass(slots=True)
class Erased:
    """What was erased: rows by table, keys and entries in Redis; `backups` still contain it."""

    rows: dict[str, int] = field(default_factory=dict)
    redis: int = 0
    backups: list[files.Found] = field(default_factory=list)


async def erase(
    url: str,
    redis_url: str | None,
    id: str,
    *,
    stream_key: str | None,
    backup_dir: Path | None = None,
    noticed_within: float = NOTICED_WITHIN,
    progress: Progress = lambda _: None,
) -> Erased:
    """Erases a vendor, or a user with all vendors, permanently: rows, locations, audit entries, Redis, position stream.

    Needs the owner of the tables. It may be repeated: it continues where it was interrupted. Raises NobodyToErase
    for an id that no vendor and no user has.
    """
    await require_newest(url)
    done = Erased()
    async with connected(url, STATEMENT_TIMEOUT) as connection:
        found = await connection.fetchrow(queries.WHOM_TO_ERASE, id)
        vendors, users, others = list(found["vendors"]), list(found["users"]), list(found["others"])
        if not vendors and not users:
            raise NobodyToErase(f"{parse_url(url).masked()} has no vendor and no user {id!r}: give the id of one")
        await connection.execute(queries.MARK_DELETED, vendors, users)
        progress("waiting until every server has closed the connections")
        await asyncio.sleep(noticed_within)
        progress("deleting the locations")
        if deleted := await delete_in_batches(connection, queries.ERASE_LOCATIONS, vendors, BATCH):
            done.rows["locations"] = deleted
        if redis_url is not None:
            progress("erasing it from Redis")
            done.redis = await erase_vendors(redis_url, vendors, stream_key)
        progress("deleting the rows")
        clerk_ids = list(found["clerkIds"])
        async with connection.transaction():
            for table, statement in queries.ERASE_ROWS.items():
                done.rows[table] = row_count(await connection.execute(statement, [*vendors, *users]))
            done.rows["streamer_audit"] = row_count(
                await connection.execute(queries.ERASE_AUDIT, [*vendors, *users, *others], clerk_ids)
            )
            await connection.execute(queries.ERASE_ACTOR, clerk_ids)
            await connection.execute(queries.UNLIST, vendors)
    if backup_dir is not None:
        done.backups = await asyncio.to_thread(files.found, backup_dir)
    return done


async def export(url: str, vendor_id: str, archive: Path) -> int:
    """Writes everything stored of a vendor into a ZIP archive: JSON, GeoJSON, GPX; returns the number of locations."""
    await require_newest(url)
    async with connected(url, STATEMENT_TIMEOUT) as connection:
        vendor = await connection.fetchval(queries.EXPORT_VENDOR, vendor_id)
        if vendor is None:
            raise DatabaseError(f"{parse_url(url).masked()} has no vendor {vendor_id!r}: give the id of one")
        name = orjson.loads(vendor)["name"]
        parts: dict[Format, list[bytes]] = {form: [] for form in Format}
        after: tuple[datetime | None, str] = (None, "")
        count = 0
        while rows := await connection.fetch(queries.EXPORT_LOCATIONS, vendor_id, *after, PAGE):
            page = [LocationRow(row["id"], row["ms"], row["lat"], row["long"]) for row in rows]
            for form, of in parts.items():
                of.append(history.encode_rows(form, vendor_id, page))
            after = (rows[-1]["timestamp"], rows[-1]["id"])
            count += len(rows)
    names = {Format.JSON: "locations.json", Format.GEOJSON: "locations.geojson", Format.GPX: "locations.gpx"}

    def write() -> None:
        file = archive.open("xb")
        try:
            with file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
                archive.chmod(0o600)
                made.writestr("vendor.json", vendor)
                for form, of in parts.items():
                    made.writestr(names[form], history.encode(form, vendor_id, name, of, None))
        except BaseException:
            archive.unlink()
            raise

    try:
        await asyncio.to_thread(write)
    except OSError as error:
        raise DatabaseError(f"{archive} can't be written: {error.strerror}; name another file by --to") from None
    return count
