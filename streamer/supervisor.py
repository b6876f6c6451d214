"""Restarts long-lived tasks that end, and gives up those that keep failing.

`RestartPolicy` applies to tasks here and to worker processes in `operations/workers/manager.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import structlog

log = structlog.get_logger()

MAX_DEATHS = 5
"""Deaths within WINDOW after which a restart is pointless."""
WINDOW = 60.0
DELAY = 0.1
"""Seconds from the first death to the restart; each further death within WINDOW adds as much."""
MAX_CANCELS = 10


class RestartPolicy:
    """Decides when something that died is restarted."""

    def __init__(self, max_deaths: int) -> None:
        self.max_deaths = max_deaths
        self.recent: list[float] = []
        """Times of the deaths within WINDOW."""

    def died(self, now: float) -> float | None:
        """Counts a death; returns the seconds until the restart, or None to give up."""
        self.recent = [at for at in self.recent if now - at < WINDOW] + [now]
        return None if len(self.recent) >= self.max_deaths else DELAY * len(self.recent)


class Supervisor:
    """Runs named tasks until `stop`; `failures` names those that were given up, with the cause."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self.deaths = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._policies: dict[str, RestartPolicy] = {}
        self._stopping = False

    def start(self, tasks: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """Runs each task until `stop`."""
        for name, run in tasks.items():
            self._spawn(name, run)

    async def stop(self) -> None:
        """Cancels all tasks and waits for their end."""
        self._stopping = True
        tasks, self._tasks = list(self._tasks.values()), {}
        await end(tasks)

    def _spawn(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        if not self._stopping:
            task = self._tasks[name] = asyncio.create_task(self._keep(name, run), name=name)
            task.add_done_callback(partial(self._ended, name, run))

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        own = asyncio.current_task()
        assert own is not None
        while True:
            error: BaseException | None = None
            try:
                await run()
                cause = "it returned"
            except asyncio.CancelledError as inner:
                # This task itself was not cancelled, so something that it awaited was.
                error, cause = inner, "CancelledError from within"
            except Exception as raised:
                error, cause = raised, f"{type(raised).__name__}: {raised}"
            if own.cancelling():
                return  # even if a library turned the cancellation into another error
            if (delay := self._died(name, cause, error)) is None:
                return
            await asyncio.sleep(delay)

    def _ended(self, name: str, run: Callable[[], Awaitable[None]], task: asyncio.Task[None]) -> None:
        """Restarts a task that was cancelled from outside."""
        error = None if task.cancelled() else task.exception()
        if self._stopping or name in self.failures:
            return
        if (delay := self._died(name, "cancelled from outside", error)) is not None:
            task.get_loop().call_later(delay, self._spawn, name, run)

    def _died(self, name: str, cause: str, error: BaseException | None) -> float | None:
        self.deaths += 1
        log.error("a long-lived task ended", task=name, cause=cause, exc_info=error)
        policy = self._policies.setdefault(name, RestartPolicy(MAX_DEATHS))
        delay = policy.died(asyncio.get_running_loop().time())
        if delay is None:
            self.failures[name] = f"died {len(policy.recent)} times within {WINDOW:.0f} s, last of {cause}"
            log.error("a long-lived task is given up", task=name, cause=self.failures[name])
        return delay


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits for their end, bounded.

    A library may turn a cancellation into its own error and go on, so each task is cancelled several times.
    """
    left = set(tasks)
    for _ in range(MAX_CANCELS):
        for task in left:
            task.cancel()
        if not left:
            return
        _, left = await asyncio.wait(left, timeout=0.5)
    log.error("tasks do not end", tasks=[task.get_name() for task in left])
