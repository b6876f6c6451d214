"""Measures the CPU time of a coroutine's own steps, and how busy a thread is where others need its CPU too."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

SCHEDULER_TIMES = "/proc/thread-self/schedstat"
"""Nanoseconds on a CPU, and nanoseconds ready to run but waiting for one (Linux, `scheduler/sched-stats`)."""


def busy_time() -> float:
    """Returns the seconds for which the thread was on a CPU or waited for one.

    A thread that waits for a CPU has no time to spare, whoever took it: other processes, or the CPU limit of a
    container. Where the system does not tell the wait, it is left out.
    """
    try:
        with open(SCHEDULER_TIMES, encoding="ascii") as file:
            on_cpu, waiting, _ = file.read().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(on_cpu) + int(waiting)) / 1e9


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
