"""Long-lived tasks with an owner: one that dies is reported and started anew; one that keeps dying is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

import structlog

log = structlog.get_logger()

MOST_DEATHS = 5
"""A task that died so often within WINDOW can't go on."""
WINDOW = 60.0
MOST_CANCELS = 10


class Supervisor:
    """Runs named tasks for ever. `failures` says which ones can't go on, and why."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self.deaths = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deaths: dict[str, list[float]] = {}
        self._ending = False

    def start(self, tasks: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """Run each of these until `stop`."""
        for name, run in tasks.items():
            self._spawn(name, run)

    async def stop(self) -> None:
        """End all tasks."""
        self._ending = True
        tasks, self._tasks = list(self._tasks.values()), {}
        await end(tasks)

    def _spawn(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        if not self._ending:
            task = self._tasks[name] = asyncio.create_task(self._keep(name, run), name=name)
            task.add_done_callback(partial(self._left, name, run))

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        own = asyncio.current_task()
        assert own is not None
        while True:
            death: BaseException | None = None
            try:
                await run()
                cause = "it returned"
            except asyncio.CancelledError as within:
                # Unless this task is to end, something that it waited for was cancelled.
                death, cause = within, "CancelledError from within"
            except Exception as error:
                death, cause = error, f"{type(error).__name__}: {error}"
            if own.cancelling():
                return  # whatever a library made of the cancellation
            if (wait := self._died(name, cause, death)) is None:
                return
            await asyncio.sleep(wait)

    def _left(self, name: str, run: Callable[[], Awaitable[None]], task: asyncio.Task[None]) -> None:
        """A task ended for good: in order, given up, or cancelled by somebody whose it is not."""
        death = None if task.cancelled() else task.exception()
        if self._ending or name in self.failures:
            return
        if (wait := self._died(name, "somebody else cancelled it", death)) is not None:
            task.get_loop().call_later(wait, self._spawn, name, run)

    def _died(self, name: str, cause: str, death: BaseException | None) -> float | None:
        """Count a death; gives the seconds until the next start, None for a task that is given up."""
        self.deaths += 1
        log.error("a task died", task=name, cause=cause, exc_info=death)
        now = asyncio.get_running_loop().time()
        deaths = self._deaths[name] = [at for at in self._deaths.get(name, ()) if now - at < WINDOW] + [now]
        if len(deaths) >= MOST_DEATHS:
            self.failures[name] = f"died {len(deaths)} times within {WINDOW:.0f} s, the last time of {cause}"
            log.error("a task can't go on", task=name, cause=self.failures[name])
            return None
        return 0.1 * len(deaths)


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and see them end, within bounds.

    A library that turns the cancellation into an error of its own would keep a loop going, so it is asked again.
    """
    left = set(tasks)
    for _ in range(MOST_CANCELS):
        for task in left:
            task.cancel()
        if not left:
            return
        _, left = await asyncio.wait(left, timeout=0.5)
    log.error("tasks do not end", tasks=[task.get_name() for task in left])
