"""Measures the CPU time of a coroutine's own steps, without other tasks that run while it waits. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


@coroutine
def measured(
    work: Coroutine[Any, Any, Result],
    charge: Callable[[float], object],
    cpu_clock: Callable[[], float] = time.thread_time,
) -> Generator[Any, Any, Result]:
    """Awaits the work, and calls `charge` with the CPU seconds of each of its steps."""
    error: BaseException | None = None
    while True:
        began = cpu_clock()
        try:
            waits_for = work.send(None) if error is None else work.throw(error)
        except StopIteration as done:
            result: Result = done.value
            return result
        finally:
            charge(cpu_clock() - began)
        error = None
        try:
            yield waits_for
        except BaseException as thrown:
            error = thrown
