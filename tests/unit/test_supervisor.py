"""Long-lived tasks: one that dies unseen leaves a server that looks well and does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from streamer import supervisor as module
from streamer.supervisor import MAX_DEATHS, Supervisor
from tests.support.apps import eventually


@pytest_asyncio.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    await supervisor.stop()


async def test_a_task_that_dies_is_restarted(supervisor: Supervisor) -> None:
    """One error costs a moment, not the task."""
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("once more")
        await asyncio.Event().wait()

    supervisor.start({"task": run})
    await eventually(lambda: runs == 3, "a third run")
    assert supervisor.deaths == 2
    assert supervisor.failures == {}


async def test_tasks_that_can_not_go_on(supervisor: Supervisor) -> None:
    """A task that dies again and again, in whatever way, is named to the operator; the others go on."""
    lived = 0

    async def raises() -> None:
        raise ValueError("broken")

    async def returns() -> None:
        pass

    async def is_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def lives() -> None:
        nonlocal lived
        while True:
            lived += 1
            await asyncio.sleep(0.01)

    supervisor.start({"raises": raises, "returns": returns, "is cancelled": is_cancelled, "lives": lives})
    await eventually(lambda: len(supervisor.failures) == 3, "three that fail")
    assert supervisor.deaths == 3 * MAX_DEATHS
    assert "ValueError: broken" in supervisor.failures["raises"]
    assert "it returned" in supervisor.failures["returns"]
    assert "CancelledError" in supervisor.failures["is cancelled"]
    before = lived
    await eventually(lambda: lived > before, "the other one living on")


async def test_deaths_far_apart(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that dies now and then, over months, is not given up."""
    monkeypatch.setattr(module, "WINDOW", 0.01)

    async def run() -> None:
        raise ValueError("now and then")

    supervisor.start({"task": run})
    await eventually(lambda: supervisor.deaths > MAX_DEATHS, "many deaths")
    assert supervisor.failures == {}


async def test_stop() -> None:
    """Stopping ends every task and is no death; even of one that makes another error of the cancellation."""
    supervisor = Supervisor()
    ended = []

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("well")

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("stubborn")
            raise ConnectionError("cancelled while connecting") from None

    supervisor.start({"well": run, "stubborn": stubborn})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await supervisor.stop()
        await supervisor.stop()
    assert sorted(ended) == ["stubborn", "well"]
    assert (supervisor.deaths, supervisor.failures) == (0, {})
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("well", "stubborn")]
