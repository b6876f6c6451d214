"""A whole trace through a running server, judged from outside by the load test."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from tests.conftest import Serve
from tests.support.apps import SECRET
from tests.support.paths import DATA

TRACE = DATA / "warsaw_buses_all_20min_2024-02-19.csv.gz"


async def replayed(url: str, database_url: str, *arguments: str) -> dict[str, object]:
    """What `python -m loadtest replay --verify` reports; fails with its words when a check of its does."""
    command = ["-m", "loadtest", "replay", *arguments, "--url", url, "--database", database_url]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        "--secret",
        SECRET,
        "--verify",
        "--json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, err.decode() + out.decode()
    report: dict[str, object] = json.loads(out)
    return report


async def test_a_generated_trace_is_stored_once_and_shown_truly(serve: Serve, database_url: str) -> None:
    """Everything acked is in `locations` once, vendors are at their newest fix, a watcher ends with who is there."""
    running = await serve()
    report = await replayed(running.url, database_url, "--generate", "60", "--seconds", "120", "--speedup", "40")
    assert report["ok"] is True
    assert report["acked"] == report["stored"] == report["sent"]


@pytest.mark.skipif(not TRACE.exists(), reason="the Warsaw trace is not beside the project")
async def test_the_warsaw_burst_is_stored_once_and_shown_truly(serve: Serve, database_url: str) -> None:
    """The same with 1,546 real buses, 20 minutes in 15 seconds."""
    running = await serve()
    report = await replayed(running.url, database_url, str(TRACE), "--speedup", "80")
    assert report["ok"] is True
    assert report["sent"] == 108_912
    assert report["acked"] == report["stored"] == report["sent"]
