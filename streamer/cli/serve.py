"""`streamer serve`: one process, or a manager of several on one port."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import structlog
import typer

from streamer import app
from streamer.cli import config
from streamer.cli.options import Host, Port
from streamer.cli.process import interrupts, report, run, spare_the_collector
from streamer.errors import SettingsError, StreamerError
from streamer.operations import logs
from streamer.operations.watchdog import Watchdog
from streamer.operations.workers.manager import Workers, reserve
from streamer.operations.workers.peers import Peers
from streamer.operations.workers.scoreboard import Scoreboard
from streamer.settings import Settings

STOP_WITHIN = 12.0
"""Seconds beyond `drain_timeout` that an orderly stop may take before the process is ended where it hangs."""


def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Processes on the one port.", min=1, max=64)] = None,
) -> None:
    """Serve on the PostgreSQL of DATABASE_URL and the Redis of REDIS_URL."""
    configured = config.load(config.SERVING, host=host, port=port, workers=workers)
    config.warn_of_unknown_variables()
    logs.configure(form=configured.log_form, level=configured.log_level)
    faulthandler.enable()
    if configured.workers > 1:
        sys.exit(_serve_by_workers(configured))
    run(_serve(configured))


async def _serve(configured: Settings) -> None:
    with Watchdog(configured.stuck_after) as watchdog:
        async with interrupts() as interrupt, app.serving(configured) as (_, url):
            spare_the_collector()
            print(f"serving on {url}", file=sys.stderr, flush=True)
            await interrupt.wait()
            watchdog.hurry(configured.drain_timeout + STOP_WITHIN)
            print("stopping", file=sys.stderr, flush=True)


def _serve_by_workers(configured: Settings) -> int:
    """Serve by several processes; the exit status."""
    try:
        held, port = reserve(configured.host, configured.port)
    except OSError as taken:
        raise app.not_listening(configured.host, configured.port, taken) from None
    settled = configured.model_copy(update={"port": port})
    board = Scoreboard(settled.workers)
    host = f"[{settled.host}]" if ":" in settled.host else settled.host

    def ready() -> None:
        said = f"serving on http://{host}:{port} with {settled.workers} workers"
        print(said, file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamer-")))
        for one in held:
            stack.enter_context(one)

        def work(number: int) -> int:
            structlog.contextvars.bind_contextvars(worker=number)
            try:
                run(_work(settled, Peers(board, number, folder)))
            except SettingsError as wrong:
                return report(wrong, 2)
            except StreamerError as failed:
                return report(failed, 1)
            return 0

        _preload()
        return Workers(
            board, work, stuck_after=settled.stuck_after + 2.0, drain_timeout=settled.drain_timeout, ready=ready
        ).run()


async def _work(configured: Settings, peers: Peers) -> None:
    with Watchdog(configured.stuck_after) as watchdog:
        async with interrupts() as interrupt, app.serving(configured, peers):
            spare_the_collector()
            await interrupt.wait()
            watchdog.hurry(configured.drain_timeout + STOP_WITHIN)


def _preload() -> None:
    """What each worker would do for itself is done once, and shared by all."""
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401
    gc.collect()
    gc.freeze()
