"""Runs of the load test in a separate process, with their reports."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.support.apps import SECRET
from tests.support.paths import ROOT


async def load_run(url: str, database_url: str, *arguments: str, within: float) -> tuple[int, dict[str, Any], str]:
    """Runs a scenario with these arguments; returns exit code, report ({} for none) and messages."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", "run", *arguments),
        *("--url", url, "--database", database_url, "--secret", SECRET, "--json"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), within)
    assert process.returncode is not None
    return process.returncode, json.loads(out) if out else {}, err.decode()
