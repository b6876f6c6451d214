"""`streamer serve`: one process, or several workers on one port."""

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

from streamer import lifecycle
from streamer.cli import config
from streamer.cli.config import Host, Port
from streamer.cli.process import reported, run, until_stopped
from streamer.operations import logs
from streamer.operations.file_limits import fit_to_descriptors
from streamer.operations.workers.manager import Workers, reserve
from streamer.operations.workers.peers import Peers
from streamer.operations.workers.scoreboard import Scoreboard
from streamer.settings import Settings

log = structlog.get_logger()

WORKER_MARGIN = 2.0
"""Seconds that the manager gives a worker's own watchdog before it kills a stuck worker."""


def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes that share the port.", min=1, max=64)] = None,
) -> None:
    """Run the server with the PostgreSQL of DATABASE_URL and the Redis of REDIS_URL."""
    configured = config.load(config.SERVING, host=host, port=port, workers=workers)
    config.warn_of_unknown_variables()
    logs.configure(form=configured.log_form, level=configured.log_level)
    faulthandler.enable()
    log.info("locations are kept until `streamer db prune` drops them", retention_days=configured.retention)
    if not configured.origins:
        log.warning("STREAMER_ORIGINS is not set: pages of every origin may open sockets and read answers")
    configured = fit_to_descriptors(configured)
    if configured.workers > 1:
        sys.exit(_serve_with_workers(configured))
    run(_serve(configured))


async def _serve(configured: Settings, peers: Peers | None = None) -> None:
    # With several workers the manager reports that they serve.
    started = None if peers is not None else lambda server: f"serving on {server[1]}"
    await until_stopped(configured, lifecycle.serving(configured, peers), started)


def _serve_with_workers(configured: Settings) -> int:
    try:
        reserved, port = reserve(configured.host, configured.port)
    except OSError as error:
        raise lifecycle.not_listening(configured.host, configured.port, error) from None
    settled = configured.model_copy(update={"port": port})
    scoreboard = Scoreboard(settled.workers)
    host = f"[{settled.host}]" if ":" in settled.host else settled.host

    def ready() -> None:
        print(f"serving on http://{host}:{port} with {settled.workers} workers", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamer-")))
        for held in reserved:
            stack.enter_context(held)

        def work(number: int) -> int:
            structlog.contextvars.bind_contextvars(worker=number)
            return reported(lambda: run(_serve(settled, Peers(scoreboard, number, folder))))

        _preload()
        return Workers(
            scoreboard,
            work,
            stuck_after=settled.stuck_after + WORKER_MARGIN,
            drain_timeout=settled.drain_timeout,
            ready=ready,
        ).run()


def _preload() -> None:
    """Loads modules before the fork, so that the workers share their memory."""
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401
    gc.collect()
    gc.freeze()
