"""Queues that store a vendor's pings until they are acked: in memory, or durable in a SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Protocol

from venta_client.errors import QueueFailed
from venta_client.ping import Ping

BUSY = 5.0
CREATE = """
CREATE TABLE IF NOT EXISTS pings (
    timestamp INTEGER PRIMARY KEY, lat REAL NOT NULL, long REAL NOT NULL, heading REAL, speed REAL, accuracy REAL
) STRICT
"""
PUT = "INSERT OR REPLACE INTO pings (timestamp, lat, long, heading, speed, accuracy) VALUES (?, ?, ?, ?, ?, ?)"


class Queue(Protocol):
    """Stores pings by `timestamp`; `write` returns when the change is durable and ignores missing timestamps."""

    async def load(self) -> list[Ping]:
        """Returns the pings of an earlier run, oldest first."""

    async def write(self, put: Sequence[Ping], remove: Sequence[int]) -> None:
        """Stores and removes pings in one transaction."""

    async def close(self) -> None:
        """Closes the queue."""


class MemoryQueue:
    """A queue in memory, lost with the process."""

    async def load(self) -> list[Ping]:
        return []

    async def write(self, put: Sequence[Ping], remove: Sequence[int]) -> None:
        pass

    async def close(self) -> None:
        pass


class SqliteQueue:
    """A queue in a SQLite file, committed to disk before `write` returns; each client needs its own file."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = path
        self.busy = BUSY
        """Seconds to wait while another process locks the file."""
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def load(self) -> list[Ping]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="venta-queue")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def write(self, put: Sequence[Ping], remove: Sequence[int]) -> None:
        if self._thread is None:
            raise QueueFailed(f"{self.path} is not open: call load() first")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, put, remove)

    async def close(self) -> None:
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)
            self._thread = None

    def _load(self) -> list[Ping]:
        try:
            if self._database is None:
                self._database = sqlite3.connect(
                    self.path, timeout=self.busy, isolation_level=None, check_same_thread=False
                )
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                # With one file, each of two clients would send the other's pings and remove pings not sent yet.
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._database.execute(CREATE)
            rows = self._database.execute(
                "SELECT timestamp, lat, long, heading, speed, accuracy FROM pings ORDER BY timestamp"
            )
            return [Ping(*row) for row in rows]
        except sqlite3.Error as failed:
            raise QueueFailed(f"{self.path} can't be opened: {failed}; is another client using it?") from failed

    def _write(self, put: Iterable[Ping], remove: Iterable[int]) -> None:
        database = self._database
        if database is None:
            raise QueueFailed(f"{self.path} is closed")
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany("DELETE FROM pings WHERE timestamp = ?", [(timestamp,) for timestamp in remove])
                database.executemany(PUT, put)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        except sqlite3.Error as failed:
            raise QueueFailed(f"{self.path} can't be written: {failed}; is the disk full?") from failed

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
