"""Several processes on one port: a worker that died or hangs must be detected and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamer.operations.workers.scoreboard import SILENT, Scoreboard, Slot
from streamer.storage import seed
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually
from tests.support.commands import Command, run

AREA = circle(52.2297, 21.0122, 3000)


def test_a_scoreboard_names_failed_workers() -> None:
    """A worker that is silent or fails must be named, but not one that is starting."""
    board = Scoreboard(3)
    for number in range(3):
        board.put(number, Slot(10.0, False, ""))
    assert board.failures(10.0 + SILENT) == {}
    board.beat(0, 20.0)
    board.beat(1, 20.0, "broker-publisher: it died 5 times — " + "ä" * 600)
    failures = board.failures(20.5)
    assert list(failures) == ["worker 1", "worker 2"]
    assert failures["worker 1"].startswith("broker-publisher: it died 5 times — ää")
    assert failures["worker 2"] == "no heartbeat for 10 s"
    assert list(board.failures(20.5, but=1)) == ["worker 2"]
    board.beat(1, 21.0)
    assert board.slot(1) == Slot(21.0, True, "")


@asynccontextmanager
async def serving(
    folder: Path, database_url: str, redis_url: str, *arguments: str, **given: str
) -> AsyncIterator[Command]:
    """`streamer serve --workers 2`."""
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
    settings |= {"STREAMER_WATCH_AUTH": "optional", "STREAMER_POOL_SIZE": "3", "STREAMER_DRAIN_TIMEOUT": "3"} | given
    async with Command("serve", "--workers", "2", "--port", "0", *arguments, folder=folder, **settings) as command:
        yield command


def children(command: Command) -> set[int]:
    """The workers' processes."""
    return {child.pid for child in psutil.Process(command.pid).children()}


async def answers(url: str, path: str) -> tuple[int, str]:
    """Sends one request over a new connection, so that the kernel chooses a worker again."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as session,
        session.get(url + path) as response,
    ):
        return response.status, await response.text()


async def test_workers_share_a_port_and_one_that_dies_is_replaced(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """Vendors and customers on any worker see each other; a killed worker is replaced quickly."""
    (vendor,) = await seed.seed(database_url, 1)
    async with serving(tmp_path, database_url, redis_url) as command:
        url = await command.url()
        assert "with 2 workers" in command.err
        before = children(command)
        assert len(before) == 2
        async with VendorApp(url, vendor.clerk_id) as app:
            customers = [await CustomerApp(url).__aenter__() for _ in range(8)]
            try:
                await app.ping(52.2297, 21.0122)
                for customer in customers:
                    await customer.watch("w", AREA)
                    await customer.sees("w", {vendor.vendor_id: (52.2297, 21.0122)})
                _, text = await answers(url, "/metrics")
                told = {
                    sample.labels["worker"]: sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                    if sample.name == "streamer_connections" and sample.labels["kind"] == "watch"
                }
                assert list(told) == ["0", "1"] or list(told) == ["1", "0"]
                assert sum(told.values()) == len(customers)
                os.kill(min(before), signal.SIGKILL)
                await command.said("a worker ended unexpectedly")
                await eventually(lambda: len(children(command) - before) == 1, "a new worker")
            finally:
                for customer in customers:
                    await customer.close()
        for _ in range(8):

            async def ready() -> bool:
                try:
                    return (await answers(url, "/readyz"))[0] == 200
                except aiohttp.ClientError:
                    return False

            await eventually(ready, "a server that is ready")
        command.signal(signal.SIGTERM)
        assert (await command.ended()).status == 0
        assert not [pid for pid in before if psutil.pid_exists(pid)]


async def test_a_worker_that_hangs_is_logged_and_replaced(tmp_path: Path, database_url: str, redis_url: str) -> None:
    """The other worker's `/readyz` names it, and the parent ends it."""
    async with serving(tmp_path, database_url, redis_url, STREAMER_STUCK_AFTER="7") as command:
        url = await command.url()
        before = children(command)
        hung = max(before)
        os.kill(hung, signal.SIGSTOP)
        told: list[str] = []

        async def named() -> bool:
            try:
                status, text = await answers(url, "/readyz")
            except (aiohttp.ClientError, TimeoutError):
                return False  # the request went to the worker that hangs
            if status == 503:
                told.append(text)
            return bool(told)

        await eventually(named, "the worker that hangs", 30)
        assert "no heartbeat" in told[0]
        await command.said("killing a stuck worker")
        await eventually(lambda: len(children(command) - before) == 1, "a new worker", 30)
        assert not psutil.pid_exists(hung)


async def test_a_crash_loop_is_logged_and_ends(tmp_path: Path, database_url: str, redis_url: str) -> None:
    """Workers that die whenever they serve are not restarted forever, so that the operator sees it."""
    async with serving(tmp_path, database_url, redis_url) as command:
        await command.url()

        async def die() -> None:
            while True:
                for pid in children(command):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.1)

        dying = asyncio.create_task(die())
        ended = await command.ended()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    assert ended.status == 1
    assert "workers keep dying" in ended.err


SCARCE = """
import os, sys, time
from streamer.operations import logs
from streamer.operations.workers.manager import Workers
from streamer.operations.workers.scoreboard import Scoreboard

board, fork, calls = Scoreboard(2), os.fork, []

def scarce():
    calls.append(None)
    if 3 <= len(calls) <= 8:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

def work(number):
    while True:
        board.beat(number, time.monotonic())
        time.sleep(0.1)

logs.configure(form="json")
os.fork = scarce
ready = lambda: print("ready", file=sys.stderr, flush=True)
sys.exit(Workers(board, work, stuck_after=60.0, drain_timeout=1.0, ready=ready).run())
"""


async def test_a_system_without_room_for_another_worker_keeps_the_others(tmp_path: Path) -> None:
    """More failed starts than deaths are tolerated: a serving worker must not be killed for a missing one."""
    async with Command("-c", SCARCE, program=sys.executable, folder=tmp_path) as command:
        await command.said("ready")
        lost, kept = sorted(children(command))
        os.kill(lost, signal.SIGKILL)
        await command.said("cannot start a worker")
        await eventually(lambda: len(children(command)) == 2, "another worker", 60)
        assert kept in children(command)
        assert command.err.count("cannot start a worker") == 6
        command.signal(signal.SIGTERM)
        ended = await command.ended()
    assert "keep dying" not in ended.err


async def test_workers_that_can_not_start_fail_as_one_does(
    tmp_path: Path, empty_database_url: str, redis_url: str
) -> None:
    """A database without its schema: one message, only once, and the exit status of the command without workers."""
    given = {"DATABASE_URL": empty_database_url, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
    alone = await run("serve", "--port", "0", folder=tmp_path, **given)
    many = await run("serve", "--port", "0", "--workers", "4", folder=tmp_path, **given)
    assert many.status == alone.status != 0
    assert many.err.count("streamer db upgrade") == alone.err.count("streamer db upgrade") == 1


async def test_a_port_that_is_taken_is_refused(tmp_path: Path, database_url: str, redis_url: str) -> None:
    """Otherwise two servers would silently share the port, and half of the clients would use the old one."""
    async with serving(tmp_path, database_url, redis_url) as command:
        port = (await command.url()).rsplit(":", 1)[1]
        given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "STREAMER_JWT_SECRET": SECRET}
        second = await run("serve", "--port", port, "--workers", "2", folder=tmp_path, **given)
        assert second.status == 2
        assert f"port {port} is taken" in second.err


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
async def test_workers_end_with_their_parent(tmp_path: Path, database_url: str, redis_url: str) -> None:
    """A parent that is killed leaves no worker behind that holds the port."""
    async with serving(tmp_path, database_url, redis_url) as command:
        await command.url()
        workers = children(command)
        command.signal(signal.SIGKILL)
        await eventually(lambda: not [pid for pid in workers if alive(pid)], "no worker", 30)


def alive(pid: int) -> bool:
    """Returns whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
