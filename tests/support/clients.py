"""The clients as programs, for `streamer conformance` and tests."""

from __future__ import annotations

import shutil
import subprocess
import sys

import asyncpg

from tests.support.paths import ROOT

NODE = shutil.which("node")
KIT = ROOT / "clients" / "conformance"


def node_version() -> int:
    """Node's major version; 0 where there is none."""
    if NODE is None:
        return 0
    said = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.removeprefix("v").split(".")[0])


NODE_VERSION = node_version()
# from 22 on its WebSocket is enabled by default
NODE_COMMAND = [str(NODE), "--no-warnings", *(["--experimental-websocket"] if NODE_VERSION < 22 else [])]

PROGRAMS: dict[str, list[str] | None] = {
    "js": [*NODE_COMMAND, str(KIT / "testee.mjs")] if NODE_VERSION >= 20 else None,
    "python": [sys.executable, str(KIT / "testee.py")],
}
"""The command of each client; None if its runtime is not installed."""


async def stored(url: str, vendor_id: str) -> list[int]:
    """Returns the timestamps in `locations`."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            'SELECT (EXTRACT(EPOCH FROM "timestamp") * 1000)::bigint AS at FROM "locations"'
            ' WHERE "vendorId" = $1 ORDER BY 1',
            vendor_id,
        )
    finally:
        await connection.close()
    return [row["at"] for row in rows]
