"""What open watches cost their client: an error here lets one client's polygons take a core from everybody."""

from __future__ import annotations

import itertools
from typing import cast

import orjson
import pytest

from streamer.geo.shapes import Circle
from streamer.ingest.cost import BURST, HEAVY_RATE, WATCHING, CostBudgets, CostLimits
from streamer.live import index as index_module
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Presence
from streamer.live.view import ViewKey
from streamer.live.watch import Watch
from streamer.transport.watch_budget import TELL_AGAIN, WatchBudget
from streamer.transport.writer import Writer
from tests.support.viewer import Client, plain

START = 1_800_000_000_000
LIMITS = CostLimits(connection=0.02, user=0.06, address=0.3, heavy=0.1)


class Taking(Client):
    """A client that reads everything, and keeps the messages that belong to no watch."""

    def __init__(self) -> None:
        super().__init__(plain)
        self.told: list[dict[str, object]] = []
        self.snapshots = 0

    def write(self, frame: bytes) -> None:
        self.snapshots += b'"type":"snapshot"' in frame

    def send(self, payload: bytes) -> None:
        self.told.append(orjson.loads(payload))


class Counting(WatchBudget):
    """A budget that also adds up what it is charged."""

    used = 0.0

    def charge(self, seconds: float) -> float:
        Counting.used += seconds
        return super().charge(seconds)


@pytest.mark.parametrize("clients", [1, 40])
def test_costly_watches_use_no_more_than_their_share(monkeypatch: pytest.MonkeyPatch, clients: int) -> None:
    """Of one client, or of forty: for as long as their costly watches stay they use what they may. Each client is told
    once a minute, and its watches get snapshots again and again; whoever watches something else gets each update."""
    monkeypatch.setattr(index_module, "MEASURE_EVERY", 1)
    monkeypatch.setattr(Counting, "used", 0.0)
    seconds, now = 120, START
    # Each measured test of a view takes a millisecond, and so does each snapshot after a rest.
    index = LiveIndex("me", cpu_clock=(number / 1000 for number in itertools.count()).__next__)
    budgets = CostBudgets(LIMITS)
    index.put_card("v", Card(1, "v", True, None), now)
    index.put_presence("v", Presence(1, "me", 0), now)
    index.put_fix("v", Fix(now, 52.2, 21.0), now)
    ordinary, heavy = Client(plain), [Taking() for _ in range(clients)]
    index.watch(Watch("w", ordinary), ViewKey(None, frozenset("v"), False), now)
    for number, client in enumerate(heavy):
        cost = budgets.client(f"192.0.2.{number}", 0.0)
        payer = Counting(cost, cast(Writer, client), lambda: (now - START) / 1000)
        for other in range(4):
            key = ViewKey(Circle(52.2, 21.01, 1_500.0 + number + other / 10), None, False)
            index.watch(Watch(str(other), client, payer=payer), key, now)
    for step in range(seconds * 10):
        now += 100
        index.put_fix("v", Fix(now, 52.2, 21.0 + step % 10 / 100_000), now)
        index.tick(now)
    unlimited = clients * 4 * seconds * 10 / 1000
    share = min(clients * LIMITS.connection, clients * HEAVY_RATE * LIMITS.connection + LIMITS.heavy)
    free = clients * WATCHING * LIMITS.connection
    assert Counting.used < 1.1 * (share + free) * (seconds + BURST)
    assert Counting.used < 0.8 * unlimited
    for client in heavy:
        assert 1 <= len(client.told) <= seconds / TELL_AGAIN + 1
        assert {error["code"] for error in client.told} == {"ERR_RATE_LIMITED"}
        assert client.snapshots > 4, "those at the start, and others"
    assert ordinary.kinds.count(("w", "update")) == seconds * 10


def test_a_try_that_fails_is_repeated_later() -> None:
    """Watches that are too costly for updates are tried seldom: forty clients' tries would be most of a core."""
    now = 0.0
    cost = CostBudgets(LIMITS).client(None, 0.0)
    budget = WatchBudget(cost, cast(Writer, Taking()), lambda: now)
    tried = []
    while now < 3600:
        now += 0.1
        if budget.calm():
            if budget.charge(0.02):
                tried.append(now)
        else:
            budget.charge_rest(0.0001)
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert len(tried) < 15
    assert pauses[0] < 60
    assert pauses[-1] >= 600


def test_a_client_that_was_calm_for_long_rests_shortly() -> None:
    """One costly minute a day must not mean ten minutes without updates."""
    now = 0.0
    budget = WatchBudget(CostBudgets(LIMITS).client(None, 0.0), cast(Writer, Taking()), lambda: now)
    for _ in range(5):
        while not budget.charge(0.1):
            pass
        began = now
        while not budget.calm():
            now += 1.0
        assert now - began < 120
        now += 600
