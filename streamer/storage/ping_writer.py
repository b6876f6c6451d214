"""Stores pings: by COPY, or through a staging table if some may be stored already or a row is refused.

COPY alone is fastest, but fails as a whole. The staging table skips rows that are stored already and rows of deleted
vendors; bisection finds a row that PostgreSQL refuses.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from streamer.errors import ErrorCode
from streamer.ingest.batcher import Chunk, Rejected
from streamer.ingest.copy_rows import COLUMNS, COPY_HEADER, COPY_TRAILER, decode_rows, location_id
from streamer.storage import queries
from streamer.storage.database import Database, transaction

STAGING_AFTER_DUPLICATE = 1.0
"""Seconds for which staging is used after a duplicate: resends come in groups, and a failed COPY leaves dead rows."""


class PingWriter:
    """Stores the chunks of the batcher."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._staging_until = 0.0

    async def store(self, chunks: Sequence[Chunk], retry: bool = False) -> Mapping[Chunk, Rejected]:
        """Commits every ping that can be stored, once; returns those that can never be stored, by chunk and seq.

        `retry`: an earlier attempt may have stored some. Raises Unavailable, after which some may be stored too.
        """
        if not retry and time.monotonic() >= self._staging_until:
            rows = bytearray().join([COPY_HEADER, *[chunk.rows for chunk in chunks], COPY_TRAILER])

            async def copy(connection: Any) -> None:
                async with self._database.durable(connection):
                    await _copy(connection, rows)

            try:
                await self._database.run(copy, "copy")
            except asyncpg.UniqueViolationError:
                self._staging_until = time.monotonic() + STAGING_AFTER_DUPLICATE
            except asyncpg.PostgresError:
                pass
            else:
                return {}
        rejected: dict[Chunk, dict[int, tuple[ErrorCode, str]]] = {}
        await self._stage([_Part(chunk, 0, chunk.count) for chunk in chunks], rejected)
        await self._correct([chunk for chunk in chunks if chunk not in rejected])
        return rejected

    async def _correct(self, chunks: Sequence[Chunk]) -> None:
        """Sets the newest ping of each chunk to the stored one, if another ping with its timestamp was stored first.

        Counts all such pings for the chunks that request it.
        """
        by_id: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            by_id.setdefault(location_id(chunk.vendor_id, chunk.newest[0]), []).append(chunk)
        sent = {
            chunk: [(row[0], row[2:4]) for row in decode_rows(chunk.rows, chunk.row_size)]
            for chunk in chunks
            if chunk.duplicates is not None
        }
        ids = by_id.keys() | {id for pings in sent.values() for id, _ in pings}
        found = await self._database.fetch(queries.STORED, list(ids), what="stored")
        stored = {row[0]: (row[1], row[2]) for row in found}
        for chunk, pings in sent.items():
            chunk.duplicates = sum(stored.get(id, position) != position for id, position in pings)
        for id in by_id.keys() & stored.keys():
            lat, long = stored[id]
            for chunk in by_id[id]:
                if chunk.newest[1:3] != (lat, long):
                    chunk.newest = chunk.newest._replace(lat=lat, long=long)
                    chunk.corrected = True

    async def _stage(self, parts: list[_Part], rejected: dict[Chunk, dict[int, tuple[ErrorCode, str]]]) -> None:
        """Stores the rows that can be stored, and isolates a row that PostgreSQL refuses by bisection."""
        rows = bytearray().join([COPY_HEADER, *[part.rows for part in parts], COPY_TRAILER])
        try:
            missing = await self._database.run(lambda connection: _store_staged(connection, rows), "staging")
        except asyncpg.PostgresError as error:
            count = sum(part.count for part in parts)
            if count > 1:
                for half in _halves(parts, count // 2):
                    await self._stage(half, rejected)
                return
            part = parts[0]
            rejected.setdefault(part.chunk, {})[part.seqs[0]] = (ErrorCode.INTERNAL, _refusal(part, error))
            return
        for part in parts:
            vendor_id = part.chunk.vendor_id
            if vendor_id in missing:
                why = (ErrorCode.VENDOR_NOT_FOUND, f"vendor {vendor_id!r} does not exist: it was deleted")
                rejected.setdefault(part.chunk, {}).update(dict.fromkeys(part.seqs, why))


@dataclass(eq=False, slots=True)
class _Part:
    """Some of a chunk's pings: those from `start` up to `stop`."""

    chunk: Chunk
    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def seqs(self) -> Sequence[int]:
        return self.chunk.seqs[self.start : self.stop]

    @property
    def rows(self) -> bytes | bytearray:
        size = self.chunk.row_size
        return self.chunk.rows[self.start * size : self.stop * size]


def _halves(parts: list[_Part], middle: int) -> tuple[list[_Part], list[_Part]]:
    first: list[_Part] = []
    second: list[_Part] = []
    for part in parts:
        if middle >= part.count:
            first.append(part)
        elif middle <= 0:
            second.append(part)
        else:
            first.append(_Part(part.chunk, part.start, part.start + middle))
            second.append(_Part(part.chunk, part.start + middle, part.stop))
        middle -= part.count
    return first, second


def _refusal(part: _Part, error: Any) -> str:
    try:
        id = decode_rows(part.rows, part.chunk.row_size)[0][0]
    except ValueError:
        id = "?"
    return (
        f"location {id} of vendor {part.chunk.vendor_id!r} can't be stored, PostgreSQL says: {error}"
        f" (SQLSTATE {error.sqlstate})"
    )


async def _copy(connection: Any, rows: bytearray, table: str = "locations", schema: str | None = None) -> None:
    # As a bytearray: asyncpg would interpret bytes as the path of a file.
    await connection.copy_to_table(table, schema_name=schema, source=rows, columns=COLUMNS, format="binary")


async def _store_staged(connection: Any, rows: bytearray) -> frozenset[str]:
    """Stores the rows of existing vendors that are not stored yet; returns the vendors that don't exist."""
    async with transaction(connection):
        await connection.execute(queries.CREATE_STAGING)
        await _copy(connection, rows, "streamer_staging", "pg_temp")
        missing = await connection.fetch(queries.STORE_STAGED)
    return frozenset(row[0] for row in missing)
