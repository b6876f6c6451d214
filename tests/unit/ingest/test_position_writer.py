"""The newest fix of each vendor on its way to the database."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from streamer.errors import Unavailable
from streamer.ingest import position_writer as positions_module
from streamer.ingest.position import Position
from streamer.ingest.position_writer import PositionWriter, StoredPosition
from streamer.supervisor import Supervisor


class Table:
    """An update that can fail; it keeps what it was given."""

    def __init__(self) -> None:
        self.updates: list[list[StoredPosition]] = []
        self.errors: list[Exception] = []
        self.updated = asyncio.Event()

    async def __call__(self, fixes: list[StoredPosition]) -> None:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.updates.append(fixes)
        self.updated.set()

    @property
    def written(self) -> list[StoredPosition]:
        return sorted(fix for update in self.updates for fix in update)


async def test_the_newest_fix_of_each_vendor_is_written_once() -> None:
    """Each update costs as much as a stored row; an older fix would put the truck back."""
    table = Table()
    positions = PositionWriter(table)
    for vendor_id, timestamp in (("a", 2), ("a", 1), ("b", 5), ("a", 3), ("a", 3)):
        positions.note(vendor_id, Position(timestamp, 1.0 * timestamp, 0.0))
    assert positions.pending == 2
    await positions.flush()
    assert table.written == [("a", Position(3, 3.0, 0.0)), ("b", Position(5, 5.0, 0.0))]
    assert positions.pending == 0


async def test_an_update_that_fails_is_kept_under_what_is_newer() -> None:
    """A position lost in an outage stays wrong until the vendor moves again."""
    table = Table()
    table.errors = [Unavailable("away")]
    positions = PositionWriter(table)
    positions.note("a", Position(1, 1.0, 1.0))
    positions.note("b", Position(9, 1.0, 1.0))
    flush = asyncio.create_task(positions.flush())
    await asyncio.sleep(0)
    positions.note("a", Position(2, 2.0, 2.0))
    positions.note("b", Position(8, 2.0, 2.0))
    with pytest.raises(Unavailable):
        await flush
    await positions.flush()
    assert table.written == [("a", Position(2, 2.0, 2.0)), ("b", Position(9, 1.0, 1.0))]


async def test_a_flush_is_cut_into_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One statement for all vendors of an outage would hold their locks for long; done slices are not done again."""
    monkeypatch.setattr(positions_module, "SLICE", 2)
    table = Table()
    positions = PositionWriter(table)
    for n in range(5):
        positions.note(f"v{n}", Position(1, 0.0, 0.0))
    await positions.flush()
    assert [len(update) for update in table.updates] == [2, 2, 1]
    for n in range(5):
        positions.note(f"v{n}", Position(2, 0.0, 0.0))
    table.updated.clear()
    task = asyncio.create_task(positions.flush())
    await table.updated.wait()
    table.errors = [Unavailable("away")]
    with pytest.raises(Unavailable):
        await task
    assert positions.pending == 3


async def test_it_goes_on_through_outages_and_faults_and_flushes_at_the_end() -> None:
    """Positions that stop being written in silence leave the map's nearby search in the past."""
    table, supervisor = Table(), Supervisor()
    table.errors = [Unavailable("away"), KeyError("bug")]
    positions = PositionWriter(table, interval=0.01)
    with capture_logs() as logged:
        supervisor.start({"positions": positions.run})
        positions.note("a", Position(1, 1.0, 1.0))
        await table.updated.wait()
        await asyncio.sleep(0)
    assert [line["error"] for line in logged] == ["KeyError('bug')"]
    assert positions.outage is None
    await supervisor.stop()
    positions.note("a", Position(2, 2.0, 2.0))
    assert await positions.close()
    assert table.written == [("a", Position(1, 1.0, 1.0)), ("a", Position(2, 2.0, 2.0))]


async def test_the_last_flush_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that waits for a database that hangs is killed instead."""
    monkeypatch.setattr(positions_module, "FLUSH_TIMEOUT", 0.01)

    async def hang(fixes: list[StoredPosition]) -> None:
        await asyncio.sleep(3600)

    positions = PositionWriter(hang)
    positions.note("a", Position(1, 1.0, 1.0))
    assert not await positions.close()
    assert positions.pending == 1
    assert positions.outage
