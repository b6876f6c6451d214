"""Measures the CPU time of a coroutine: of its own steps, not of what runs while it waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from time import thread_time
from typing import Any, TypeVar

from streamer.ingest.cost import ClientCost

T = TypeVar("T")


class Measured(Awaitable[T]):
    """Awaits a coroutine and charges each of its steps to a client."""

    __slots__ = ("_clock", "_coroutine", "_cost")

    def __init__(self, coroutine: Coroutine[Any, Any, T], cost: ClientCost, clock: Callable[[], float]) -> None:
        self._coroutine = coroutine
        self._cost = cost
        self._clock = clock

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._coroutine.__await__()
        thrown: BaseException | None = None
        while True:
            began = thread_time()
            try:
                waits_for = next(steps) if thrown is None else steps.throw(thrown)
            except StopIteration as done:
                result: T = done.value
                return result
            finally:
                self._cost.charge(thread_time() - began, self._clock())
            thrown = None
            try:
                yield waits_for
            except BaseException as error:
                thrown = error
