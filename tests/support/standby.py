"""A streaming standby of a PostgreSQL, for failovers."""

from __future__ import annotations

import os
from pathlib import Path

import asyncpg

from streamer.operations.embedded import PostgresServer
from tests.support.apps import eventually


class Standby(PostgresServer):
    """A physical standby of a running server; its data is a base backup of that server."""

    def __init__(self, folder: Path, primary: PostgresServer) -> None:
        super().__init__(folder, durable=False)
        self._primary = primary

    async def promote(self) -> None:
        """Promotes it to the primary."""
        connection = await asyncpg.connect(self.url)
        try:
            assert await connection.fetchval("SELECT pg_promote(true, 60)")
        finally:
            await connection.close()

    async def _prepare(self) -> None:
        if not self.data.exists():
            _, password = self._new_data()
            password.write_text(self._primary.url.split(":")[2].split("@")[0] + "\n")
            os.chown(self.folder, *self.account)
            command = [str(self.bin / "pg_basebackup"), f"--pgdata={self.data}", f"--dbname={self._primary.url}"]
            await self._run([*command, "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast"])
        self._check_data()
        self.data.joinpath("postmaster.pid").unlink(missing_ok=True)

    async def _ready(self) -> bool:
        lines = self._pid_file()
        return lines[:1] == [str(self.pid)] and len(lines) > 7 and lines[7].strip() in ("standby", "ready")


async def replicates(primary: PostgresServer, state: str) -> None:
    """Waits until the primary sees a standby in this state: `async` or `sync`."""
    connection = await asyncpg.connect(primary.url)
    try:

        async def seen() -> bool:
            found = await connection.fetch("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")
            return [row[0] for row in found] == [state]

        await eventually(seen, f"a standby that is {state}", 30)
    finally:
        await connection.close()
