"""What long-running commands share: the event loop, the stop signals and the progress display."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from streamer.errors import SettingsError, StreamerError
from streamer.operations.watchdog import Watchdog

if TYPE_CHECKING:
    from streamer.settings import Settings  # takes a tenth of a second, and not every command needs it

STOP_WITHIN = 12.0
"""Seconds beyond `drain_timeout` after which a process that does not stop is ended."""

T = TypeVar("T")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


class Interrupt:
    """Ctrl-C and SIGTERM. The first ends `wait`, or cancels the startup before it; a second ends the process."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.received = False
        self._task = task
        self._event: asyncio.Event | None = None

    async def wait(self) -> None:
        """Returns on the first signal."""
        self._event = asyncio.Event()
        await self._event.wait()

    def __call__(self, number: signal.Signals) -> None:
        """Handles a signal."""
        if self.received:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._event is not None:
            self._event.set()
        else:
            self._task.cancel()
        self.received = True


@contextlib.asynccontextmanager
async def interrupts() -> AsyncIterator[Interrupt]:
    """Ends the context gracefully on Ctrl-C or SIGTERM, which is not an error."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupt = Interrupt(task)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield interrupt
    except asyncio.CancelledError:
        if not interrupt.received:
            raise
        task.uncancel()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def tune_collector() -> None:
    """Excludes everything that exists after startup from garbage collection, and collects less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def until_stopped(
    configured: Settings, running: contextlib.AbstractAsyncContextManager[T], started: Callable[[T], str] | None
) -> None:
    """Keeps a server running until a signal stops it; prints what `started` returns once it runs."""
    with Watchdog(configured.stuck_after) as watchdog:
        async with interrupts() as interrupt, running as server:
            tune_collector()
            if started is not None:
                print(started(server), file=sys.stderr, flush=True)
            await interrupt.wait()
            watchdog.limit_stop(configured.drain_timeout + STOP_WITHIN)
            if started is not None:
                print("stopping", file=sys.stderr, flush=True)


class Steps:
    """Shows progress: a spinner for the current step on a terminal, a line per step elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting", console=console)
        self._step = ""
        self._since = time.monotonic()

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._status.stop()
        self._done()

    def __call__(self, step: str) -> None:
        """Starts the next step."""
        self._done()
        self._step, self._since = step, time.monotonic()
        if self._console.is_terminal:
            self._status.update(escape(step))
        else:
            self._console.print(f"{step} …", markup=False, highlight=False)

    def _done(self) -> None:
        if self._step and self._console.is_terminal:
            self._console.print(
                f"[dim]  {escape(self._step)}: {time.monotonic() - self._since:.1f} s[/dim]", highlight=False
            )
        self._step = ""


def reported(command: Callable[[], object]) -> int:
    """Runs a command, prints its error, and returns the exit status: 0 done, 1 failed, 2 wrong use or settings."""
    try:
        command()
    except StreamerError as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    return 0
