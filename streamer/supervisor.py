"""Long-lived tasks with an owner: one that dies is reported and started anew; one that keeps dying is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

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

    def start(self, tasks: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """Run each of these until `stop`."""
        for name, run in tasks.items():
            self._tasks[name] = asyncio.create_task(self._keep(name, run), name=name)

    async def stop(self) -> None:
        """End all tasks."""
        tasks, self._tasks = list(self._tasks.values()), {}
        await end(tasks)

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        own = asyncio.current_task()
        assert own is not None
        deaths: list[float] = []
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
            self.deaths += 1
            log.error("a task died", task=name, cause=cause, exc_info=death)
            now = loop.time()
            deaths = [at for at in deaths if now - at < WINDOW] + [now]
            if len(deaths) >= MOST_DEATHS:
                self.failures[name] = f"died {len(deaths)} times within {WINDOW:.0f} s, the last time of {cause}"
                log.error("a task can't go on", task=name, cause=self.failures[name])
                return
            await asyncio.sleep(0.1 * len(deaths))


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
