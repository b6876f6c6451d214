"""Watches over their budget: an error here lets one client's watches delay everybody, or show a wrong view."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from streamer.geo.shapes import Box, Circle
from streamer.live import resting
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Presence
from streamer.live.view import ViewKey
from streamer.live.watch import Watch
from tests.support.viewer import Client

START = 1_800_000_000_000
HERE, TOWN = (52.2, 21.0), Circle(52.2, 21.0, 5_000)


@dataclass(eq=False)
class Over:
    """A client over its budget: its watches rest, and get a snapshot when `wait` is 0."""

    wait: float = 0.0
    quiet: bool = False
    paid: float = 0.0
    told: list[str] = field(default_factory=list)

    def charge(self, seconds: float) -> float:
        return 0.0 if self.quiet else 1.0

    def excess(self) -> float:
        return self.wait

    def charge_rest(self, seconds: float) -> None:
        self.paid += seconds

    def calm(self) -> bool:
        return self.quiet

    def slowed(self, watch_id: str, seconds: float) -> None:
        self.told.append(watch_id)


def town(vendors: int, tick: float = 1e-4) -> LiveIndex:
    """An index in which each measured piece of work takes `tick` seconds."""
    index = LiveIndex("me", cpu_clock=(number * tick for number in itertools.count()).__next__)
    for number in range(vendors):
        id = f"v{number}"
        index.put_card(id, Card(1, id, True, None), START)
        index.put_presence(id, Presence(1, "me", 0), START)
        index.put_fix(id, Fix(START, HERE[0], HERE[1] + number / 100_000), START)
    index.tick(START)
    return index


def go_on(index: LiveIndex, now: int, seconds: float) -> int:
    """Ticks 50 times a second."""
    for now in range(now, now + int(seconds * 1000) + 1, 20):  # noqa: B020  # it goes on from there
        index.tick(now)
    return now


def test_snapshots_again_and_again() -> None:
    """A watch over its budget is late, not lost: every half second a snapshot shows the current state."""
    index, client, payer = town(5), Client(), Over()
    watch = Watch("w", client, payer=payer)
    index.watch(watch, ViewKey(TOWN, None, False), START)
    now = START
    for step in range(1, 5):
        index.put_fix("v0", Fix(START + step, 52.2 + step / 10_000, 21.0), now)
        index.remove(f"v{step}")
        now = go_on(index, now, 0.6)
        assert client.views["w"].keys() == {"v0", *(f"v{number}" for number in range(step + 1, 5))}
        assert client.views["w"]["v0"]["lat"] == 52.2 + step / 10_000
    assert {kind for _, kind in client.kinds} == {"snapshot"}
    assert 4 <= len(client.kinds) <= 6
    assert payer.told == ["w"]
    assert payer.paid > 0
    index.unwatch(watch)
    assert not index._resting
    client.kinds.clear()
    go_on(index, now, 2)
    assert not client.kinds


def test_a_large_snapshot_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand vendors of a client over its budget delay no other client; one that stays inside is in it once."""
    monkeypatch.setattr(resting, "MOST_CARDS", 30)
    index, client = town(100, resting.WORK), Client()
    index.watch(Watch("w", client, payer=Over()), ViewKey(TOWN, None, False), START)
    now = START
    for step in range(12):
        # They move from a cell to another meanwhile, in both directions.
        for number in range(step % 3, 100, 3):
            index.put_fix(f"v{number}", Fix(now + 1, HERE[0] + step % 2 / 50, HERE[1]), now)
        before = len(client.frames)
        now += 20
        index.tick(now)
        assert len(client.frames) - before <= 1
    now = go_on(index, now, 0.4)
    assert client.views["w"].keys() == {f"v{number}" for number in range(100)}
    assert {kind for _, kind in client.kinds} == {"snapshot", "update"}


def test_clients_take_turns() -> None:
    """One with a single watch is not behind all those of another."""
    index, many, one = town(10, 1e-3), Client(), Client()
    payer, other = Over(), Over()
    for number in range(100):
        index.watch(Watch(str(number), many, payer=payer), ViewKey(Circle(*HERE, 900 + number), None, False), START)
    index.watch(Watch("w", one, payer=other), ViewKey(TOWN, None, False), START)
    go_on(index, START, 30)
    assert len(one.kinds) > 3 * len(many.kinds) / 100
    assert {id for id, _ in many.kinds} == {str(number) for number in range(100)}


@pytest.mark.parametrize("clients", [1, 40])
def test_all_of_them_use_a_share(clients: int) -> None:
    """However many rest, their snapshots take a twentieth of a core."""
    index = town(10, 1e-3)
    payers = [Over() for _ in range(clients)]
    for number, payer in enumerate(payers):
        for other in range(8):
            key = ViewKey(Circle(*HERE, 900 + number + other / 10), None, False)
            index.watch(Watch(str(other), Client(), payer=payer), key, START)
    go_on(index, START, 30)
    assert sum(payer.paid for payer in payers) <= 0.05 * 30 + 0.02


def test_a_client_that_may_have_no_more_waits() -> None:
    """Its first snapshot answers its message; each other one is paid for by its own budget."""
    index, client, payer = town(3), Client(), Over(wait=5.0)
    index.watch(Watch("w", client, payer=payer), ViewKey(TOWN, None, False), START)
    now = go_on(index, START, 3)
    assert client.kinds == [("w", "snapshot")]
    payer.wait = 0.0
    go_on(index, now, 3)
    assert len(client.kinds) > 1


def test_a_stalled_client_is_not_written_to() -> None:
    """Otherwise its write buffer would grow with each snapshot."""
    index, client = town(3), Client(room=0)
    index.watch(Watch("w", client, payer=Over()), ViewKey(TOWN, None, False), START)
    now = go_on(index, START, 3)
    assert not client.kinds
    client.room = None
    go_on(index, now, 1)
    assert client.views["w"].keys() == {"v0", "v1", "v2"}


def test_updates_again() -> None:
    """A client that is calm gets each move again, of all its watches."""
    index, client, payer = town(3), Client(), Over()
    for id, key in (("a", ViewKey(TOWN, None, False)), ("b", ViewKey(None, frozenset({"v0"}), False))):
        index.watch(Watch(id, client, payer=payer), key, START)
    now = go_on(index, START, 1)
    payer.quiet = True
    now = go_on(index, now, 1)
    assert not index._resting
    client.kinds.clear()
    index.put_fix("v0", Fix(now, 52.2001, 21.0), now)
    index.tick(now)
    assert sorted(client.kinds) == [("a", "update"), ("b", "update")]


@pytest.mark.parametrize("by", [-3_600_000, 3_600_000])
def test_a_clock_that_is_set(by: int) -> None:
    """Watches that rest go on within a minute when the clock is an hour back or ahead."""
    index, client = town(3), Client()
    index.watch(Watch("w", client, payer=Over()), ViewKey(Box(52.0, 20.0, 53.0, 22.0), None, True), START)
    now = go_on(index, START, 1)
    client.kinds.clear()
    go_on(index, now + by, 61)
    assert client.kinds
