"""A process whose event loop hangs must log where and end, or it would stay without answering."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

from streamer.operations.watchdog import STUCK, Watchdog
from tests.support.apps import SECRET
from tests.support.commands import Command
from tests.support.paths import ROOT

HANGS = """
import asyncio, sys, time
from streamer import lifecycle, settings
from streamer.operations.watchdog import Watchdog

def hang_here() -> None:
    time.sleep(60)

async def main() -> None:
    configured = settings.load(port=0)
    with Watchdog(2.0):
        async with lifecycle.serving(configured) as (_, url):
            print("serving on", url, file=sys.stderr, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            hang_here()

asyncio.run(main())
"""
ENDS_LATE = """
import time
from streamer.operations.watchdog import Watchdog
import asyncio

async def main() -> None:
    with Watchdog(60.0) as watchdog:
        watchdog.limit_stop(0.5)
        await asyncio.sleep(60)

asyncio.run(main())
"""

LOG_IS_NOT_READ = """
import asyncio, sys
from streamer.operations.watchdog import Watchdog

async def main() -> None:
    with Watchdog(1.0):
        await asyncio.sleep(0)
        while True:
            sys.stderr.write("x" * 65536)

asyncio.run(main())
"""


def test_a_log_that_nobody_reads() -> None:
    """A process whose loop hangs while writing a log line ends, too, even if it can't log."""
    with subprocess.Popen([sys.executable, "-c", LOG_IS_NOT_READ], stderr=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.wait(60) == STUCK
        finally:
            process.kill()


async def test_livez_fails_when_the_loop_is_stuck_and_the_process_ends(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """Probes fail immediately; the process logs where it hangs and ends, so that it is restarted."""
    given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
    async with Command("-c", HANGS, program=sys.executable, folder=tmp_path, **given) as command:
        url = await command.url()
        timeout = aiohttp.ClientTimeout(1)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.get(f"{url}/livez") as response:
                assert response.status == 200
            command.say("\n")
            await asyncio.sleep(0.3)
            try:
                async with session.get(f"{url}/livez"):
                    raise AssertionError("a loop that hangs answered")
            except (TimeoutError, aiohttp.ClientError):
                pass
        ended = await command.ended()
    assert ended.status == STUCK
    assert "the event loop has been blocked" in ended.err
    assert "hang_here" in ended.err


async def test_a_stop_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """A graceful stop keeps its time limit, whatever it waits for."""
    began = time.monotonic()
    async with Command("-c", ENDS_LATE, program=sys.executable, folder=tmp_path) as command:
        ended = await command.ended()
    assert ended.status == STUCK
    assert "does not stop in time" in ended.err
    assert time.monotonic() - began < 30


async def test_a_loop_that_turns_is_left_alone() -> None:
    """Long work that yields to the event loop does not end the process."""
    with Watchdog(1.0):
        for _ in range(20):
            time.sleep(0.05)  # noqa: ASYNC251  # work
            await asyncio.sleep(0)
