"""npm in tests: installs the packages of a lock file once, and skips the test if the registry can't be reached."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.paths import ROOT

NPM = shutil.which("npm")
KEPT = ROOT / ".venv" / "npm"
"""Cache of installed packages by lock file; `make clean` removes it."""
UNREACHABLE = ("network", "ENOTFOUND", "EAI_AGAIN")


async def run(folder: Path, *command: str, within: float = 300) -> str:
    """Runs a command in a folder; returns its output, or fails with it."""
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
    """Installs the packages of the lock file in a folder, or copies them from an earlier run."""
    manifest, lock = (folder / name for name in ("package.json", "package-lock.json"))
    name = json.loads(manifest.read_bytes())["name"]
    version = await run(folder, "node", "--version")
    pinned = sha256(manifest.read_bytes() + lock.read_bytes() + version.encode()).hexdigest()
    kept = KEPT / f"{name}-{pinned[:16]}"
    if kept.exists():
        await _copy(folder, kept, folder / "node_modules")
        # the only file that npm writes in place, and does not need
        (folder / "node_modules" / ".package-lock.json").unlink(missing_ok=True)
        return
    try:
        await run(folder, "npm", "ci", "--no-audit", "--no-fund", "--prefer-offline")
    except (AssertionError, TimeoutError) as failed:
        if isinstance(failed, TimeoutError) or any(word in str(failed) for word in UNREACHABLE):
            pytest.skip("the npm registry can't be reached")
        raise
    KEPT.mkdir(parents=True, exist_ok=True)
    for older in KEPT.glob(f"{name}-*"):
        shutil.rmtree(older, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(dir=KEPT))
    await _copy(folder, folder / "node_modules", unfinished)
    try:
        os.rename(unfinished, kept)
    except OSError:  # another run was faster
        shutil.rmtree(unfinished)


async def _copy(folder: Path, source: Path, target: Path) -> None:
    """Copies a tree of many files as hard links, unless the target is on another disk."""
    for options in ("-al", "-a"):
        with suppress(AssertionError):
            await run(folder, "cp", options, f"{source}/.", str(target))
            return
    raise AssertionError(f"can't copy {source} to {target}")
