"""npm in tests: installs what a lock pins, and skips where the registry can't be reached."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

NPM = shutil.which("npm")
UNREACHABLE = ("network", "ENOTFOUND", "EAI_AGAIN")


async def run(folder: Path, *command: str, within: float = 300) -> str:
    """Runs a command in a folder; returns what it printed, and fails with that when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), within)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{command}: {out.decode()}"
    return out.decode()


async def install(folder: Path) -> None:
    """Installs what the lock in a folder pins."""
    try:
        await run(folder, "npm", "ci", "--no-audit", "--no-fund", "--prefer-offline")
    except (AssertionError, TimeoutError) as failed:
        if isinstance(failed, TimeoutError) or any(word in str(failed) for word in UNREACHABLE):
            pytest.skip("the npm registry can't be reached")
        raise
