"""Some rounds of chaos, and a proof that its judge finds faults. `make chaos` runs a hundred rounds."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.faults import KINDS, LATEST, LONG, Fault, plan
from tests.chaos.judge import held_by, held_too_much
from tests.chaos.rounds import Chaos
from tests.support.apps import eventually

WITHIN = 30.0
"""Seconds within which all checks must pass: generous, as other tests run on the machine, too."""


def test_a_seed_is_its_faults() -> None:
    """A failed round can be repeated from its seed, and every kind of fault occurs."""
    entitlements = [plan(seed) for seed in range(2000)]
    assert entitlements == [plan(seed) for seed in range(2000)]
    kinds = {(fault.target.split()[0], fault.kind) for faults in entitlements for fault in faults}
    assert kinds == {(target, kind) for target, kinds in KINDS.items() for kind in kinds}
    for faults in entitlements:
        assert 1 <= len(faults) <= 4
        assert len({fault.target for fault in faults}) == len(faults)
        assert all(0 <= fault.at <= LATEST and 0 < fault.lasts <= LONG for fault in faults)


def test_a_pool_may_fill_up_and_nothing_else_may_grow(tmp_path: Path) -> None:
    """A leak of a few descriptors per round is found. Pools that fill up after the first round are not a leak."""
    with ExitStack() as stack:
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        own = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = other.getsockname()[1]
        pools = {port: ("it", 3)}

        def wrong() -> list[str]:
            return held_too_much(first, held_by(os.getpid(), own.getsockname()[1], pools), pools)

        first = held_by(os.getpid(), own.getsockname()[1], pools)
        for _ in range(3):
            stack.enter_context(socket.create_connection(other.getsockname()))
        with socket.create_connection(own.getsockname()), own.accept()[0]:
            assert wrong() == [f"{first.files + 1} files open besides pools and clients, at first {first.files}"]
        assert wrong() == []
        with (tmp_path / "file").open("w"):
            assert wrong() == [f"{first.files + 1} files open besides pools and clients, at first {first.files}"]
        with socket.create_connection(other.getsockname()):
            assert wrong() == ["4 connections to it, where 3 are the most"]


@pytest.fixture
async def chaos(tmp_path: Path) -> AsyncIterator[Chaos]:
    """The system under test with its clients."""
    async with Chaos(tmp_path, true_within=WITHIN) as chaos:
        yield chaos


async def test_nothing_acked_is_lost_and_every_map_becomes_true(chaos: Chaos) -> None:
    """Servers, PostgreSQL and Valkey are killed, and the network is cut: all checks pass afterwards."""
    rounds = [
        [Fault(0.2, 0.1, "server 1", "kill"), Fault(0.4, 0.8, "postgresql", "stop")],
        [Fault(0.1, 0.3, "valkey", "kill"), Fault(0.3, 0.2, "wire clients", "cut")],
        [
            Fault(0.1, 0.3, "wire server 2 to postgresql", "refuse"),
            Fault(0.1, 0.5, "wire server 1 to valkey", "freeze"),
        ],
    ]
    for number, faults in enumerate(rounds):
        verdict = await chaos.play(number, faults)
        assert verdict.wrong == [], str(verdict)
    assert await chaos.settled() == []
    await finds_what_is_wrong(chaos)


async def finds_what_is_wrong(chaos: Chaos) -> None:
    """The judge finds a lost or duplicated ping, a wrong view or count, a stale vendor, a lost or invented event."""
    mover = chaos.crowd.movers[0]
    vendor_id, ping = mover.app.identity.vendor_id, mover.app.acked[len(mover.app.acked) // 2]
    connection = await asyncpg.connect(chaos.stage.postgres.url)
    try:
        row = await connection.fetchrow(
            'DELETE FROM locations WHERE "vendorId" = $1 AND lat = $2 AND long = $3 RETURNING *',
            vendor_id,
            ping.lat,
            ping.long,
        )
        assert [line for line in await chaos.settled() if "was acked, but is not stored" in line]
        for id in (row["id"], row["id"][:-1] + "!"):
            await connection.execute(
                'INSERT INTO locations (id, "vendorId", lat, long, timestamp) VALUES ($1, $2, $3, $4, $5)',
                *(id, vendor_id, ping.lat, ping.long, row["timestamp"]),
            )
        assert [line for line in await chaos.settled() if "is stored 2 times" in line]
        await connection.execute("UPDATE vendors SET lat = lat + 0.001 WHERE id = $1", vendor_id)
        assert [line for line in await chaos.settled() if "in vendors; its newest fix" in line]
    finally:
        await connection.close()
    watcher = chaos.crowd.watchers[0]
    await eventually(lambda: not chaos.judge.apps(), "views that are true")
    watcher.view[vendor_id]["lat"] += 0.001
    assert [line for line in chaos.judge.apps() if f"{vendor_id} is shown at" in line]
    watcher.view[vendor_id]["lat"] -= 0.001
    watcher.view[vendor_id]["online"] = False
    assert [line for line in chaos.judge.apps() if f"{vendor_id} is shown as offline" in line]
    watcher.view[vendor_id]["online"] = True
    await eventually(lambda: not chaos.judge.counts(), "counts of all vendors")
    watcher.view["ghost"] = {**watcher.view[vendor_id], "vendorId": "ghost"}
    chaos.judge.gone["ghost"] = 0.0
    assert [line for line in chaos.judge.apps() if "ghost should have left" in line]
    assert [line for line in chaos.judge.counts() if "vendors are counted; others see" in line]
    received = chaos.stage.receiver.received
    assert received
    assert chaos.judge.alerts() == []
    lost, before = received[-1], list(received)
    received[:] = [each for each in received if each.id != lost.id]
    assert [line for line in chaos.judge.alerts() if "is not where it is" in line or "follow each other" in line]
    received[:] = [*before, lost._replace(id="invented")]
    assert [line for line in chaos.judge.alerts() if "do not follow each other" in line]
    received[:] = before
    assert chaos.judge.alerts() == []
