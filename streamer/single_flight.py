"""Shares one running call among all callers that want its result at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from streamer.supervisor import end

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs `call` at most once at a time; a caller that arrives meanwhile gets the same result or error."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]], name: str) -> None:
        self._call = call
        self._name = name
        self._task: asyncio.Task[T] | None = None

    async def result(self) -> T:
        """Returns the result of the running call, starting one if none runs."""
        if self._task is None:
            self._task = asyncio.create_task(self._call(), name=self._name)
            self._task.add_done_callback(self._done)
        # A caller that is cancelled must not cancel the call for the others.
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """Cancels the running call."""
        if self._task is not None:
            await end([self._task])

    def _done(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # marks the error as seen: every caller may have been cancelled
