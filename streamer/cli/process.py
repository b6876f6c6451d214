"""What each long-running command shares: the event loop, the stop signals and the progress display."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from streamer.errors import StreamerError


def run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


class Interrupt:
    """Ctrl-C and SIGTERM. Before `wait` they cancel what is being set up; a second one ends the process at once."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.came = False
        self._task = task
        self._waited_for: asyncio.Event | None = None

    async def wait(self) -> None:
        """Return when one comes."""
        self._waited_for = asyncio.Event()
        await self._waited_for.wait()

    def __call__(self, number: signal.Signals) -> None:
        """One came."""
        if self.came:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._waited_for is not None:
            self._waited_for.set()
        else:
            self._task.cancel()
        self.came = True


@contextlib.asynccontextmanager
async def interrupts() -> AsyncIterator[Interrupt]:
    """Ctrl-C and SIGTERM end in order what is within; that is no failure."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupt = Interrupt(task)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield interrupt
    except asyncio.CancelledError:
        if not interrupt.came:
            raise
        task.uncancel()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def spare_the_collector() -> None:
    """What is there at the start stays, so the garbage collector need not look at it each time it runs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class Steps:
    """Tells how far a start is: on a terminal the step in progress turns, elsewhere each is a line."""

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
        """The next step begins, and so the one before is done."""
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


def report(error: StreamerError, status: int) -> int:
    print(f"streamer: {error}", file=sys.stderr)
    return status
