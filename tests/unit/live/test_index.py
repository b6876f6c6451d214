"""The live index: an error here shows customers vendors who are gone, or hides those who are there."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamer.errors import ProtocolError
from streamer.geo.grid import bus_cell, cell, parent
from streamer.geo.shapes import Area, Box, Circle, Polygon
from streamer.live import index as index_module
from streamer.live import resting
from streamer.live import vendor as vendor_module
from streamer.live import view as view_module
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Presence
from streamer.live.vendor_index import AT_ONCE
from streamer.live.view import ViewKey
from streamer.live.visibility import Visibility
from streamer.live.watch import Watch
from streamer.protocol.messages import encode_fix, update_body
from tests.support.viewer import Client, plain, wrapped

ME = "me"
HOUR = 3_600_000
OFFLINE = 1_000
LEAVE = 3_000
START = 1_000_000_000


@dataclass
class Registers:
    """What is known of a vendor, in the plainest form."""

    born: int
    fix: tuple[int, float, float, float | None, float | None] | None = None
    card: Card | None = None
    presence: Presence | None = None
    http: int = 0


@dataclass
class Truth:
    """The protocol's rules without an index: what every watch should show, by looking at everyone every time."""

    now: int = START
    vendors: dict[str, Registers] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)
    lost: dict[str, bool] = field(default_factory=dict)
    visibility: Visibility = field(default_factory=Visibility)

    def of(self, vendor_id: str) -> Registers:
        return self.vendors.setdefault(vendor_id, Registers(self.now))

    def online_and_gone(self, vendor: Registers) -> tuple[bool, bool]:
        presence = vendor.presence
        if presence is None and not vendor.http:
            return False, self.now >= vendor.born + OFFLINE
        last = vendor.http
        if presence is not None and presence.ended:
            last = max(last, presence.ended)
        elif presence is not None:
            if presence.owner == ME or not self.lost[presence.owner]:
                return True, False
            last = max(last, self.heard[presence.owner], presence.since)
        return self.now < last + OFFLINE, self.now >= last + OFFLINE + LEAVE

    def forget_gone(self) -> set[str]:
        gone = {id for id, vendor in self.vendors.items() if self.online_and_gone(vendor)[1]}
        for id in gone:
            del self.vendors[id]
        return gone

    def cards(self) -> dict[str, dict[str, Any]]:
        cards = {}
        for id, vendor in self.vendors.items():
            if vendor.fix is None or vendor.card is None or (vendor.presence is None and not vendor.http):
                continue
            online, gone = self.online_and_gone(vendor)
            if gone:
                continue
            timestamp, lat, long, heading, speed, *_ = self.visibility.shown(Fix(*vendor.fix), vendor.card)
            card: dict[str, Any] = {
                "vendorId": id,
                "name": vendor.card.name,
                "open": vendor.card.open,
                "primaryImage": vendor.card.primary_image,
                "lat": lat,
                "long": long,
                "timestamp": timestamp,
                "online": online,
            }
            if heading is not None:
                card["heading"] = heading
            if speed is not None:
                card["speed"] = speed
            cards[id] = card
        return cards

    def shown(self, key: ViewKey) -> dict[str, dict[str, Any]]:
        def inside(id: str, card: dict[str, Any]) -> bool:
            if key.open and not card["open"]:
                return False
            if key.area is not None:
                return key.area.contains(card["lat"], card["long"])
            assert key.vendors is not None
            return id in key.vendors

        return {id: card for id, card in self.cards().items() if inside(id, card)}


@dataclass(frozen=True)
class Place:
    """A corner of the world in which everything happens, some twenty fine cells wide."""

    name: str
    south: float
    west: float
    high: float
    wide: float

    def at(self, y: int, x: int) -> tuple[float, float]:
        """A position for steps 0 to 30; each third or so is in another cell."""
        lat = min(self.south + y * self.high / 30, 90.0)
        long = self.west + x * self.wide / 30
        return max(lat, -90.0), long - 360.0 if long > 180.0 else long


PLACES = (
    Place("city", 52.2, 21.0, 0.1, 0.15),
    Place("on the grid's lines", 0.0, 0.0, 0.3, 0.3),
    Place("antimeridian", -16.95, 179.95, 0.1, 0.1),
    Place("north pole", 89.9, -180.0, 0.1, 360.0),
    Place("south pole", -90.0, -180.0, 0.09, 360.0),
)
VENDORS = tuple(f"v{n}" for n in range(6))
OTHERS = ("a", "b")

steps = st.integers(0, 30)
spots = st.tuples(steps, steps)
vendor_ids = st.sampled_from(VENDORS)
shapes = st.one_of(
    st.tuples(st.just("circle"), spots, st.sampled_from([0.0, 300.0, 1_500.0, 4_000.0, 12_000.0, 60_000.0])),
    st.tuples(st.just("box"), spots, spots),
    st.tuples(st.just("wide box"), spots, st.sampled_from([0.1, 0.5, 1.0])),
    st.tuples(st.just("polygon"), st.lists(spots, min_size=3, max_size=6, unique=True)),
    st.tuples(st.just("list"), st.frozensets(vendor_ids, max_size=4)),
)


def key_of(place: Place, shape: Any, only_open: bool) -> ViewKey:
    area: Area
    if shape[0] == "list":
        return ViewKey(None, shape[1], only_open)
    if shape[0] == "circle":
        area = Circle(*place.at(*shape[1]), shape[2])
    elif shape[0] == "box":
        (y1, x1), (y2, x2) = shape[1:]
        south, west = place.at(min(y1, y2), min(x1, x2))
        north, east = place.at(max(y1, y2), max(x1, x2))
        area = Box(south, west, north, east)
    elif shape[0] == "wide box":
        (lat, long), half = place.at(*shape[1]), shape[2]
        west, east = (math.remainder(long + side, 360.0) for side in (-half, half))
        area = Box(max(lat - half, -90.0), west, min(lat + half, 90.0), east)
    else:
        points = tuple((long, lat) for lat, long in (place.at(*spot) for spot in shape[1]))
        try:
            area = Polygon(points)
        except ProtocolError:
            area = Polygon(points[:3])  # it went round a pole more than once
    return ViewKey(area, None, only_open)


@dataclass(eq=False)
class Purse:
    """Who pays for watches: `rest` is what it says for how long they must rest, in seconds."""

    rest: float = 0.0
    charged: float = 0.0
    told: list[str] = field(default_factory=list)

    def charge(self, seconds: float) -> float:
        self.charged += seconds
        return self.rest

    def excess(self) -> float:
        return self.rest

    def charge_rest(self, seconds: float) -> None:
        self.charged += seconds

    def calm(self) -> bool:
        return self.rest == 0.0

    def slowed(self, watch_id: str, seconds: float) -> None:
        self.told.append(watch_id)


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens in thousands of moves, or with thousands of vendors, happens with a few."""
    monkeypatch.setattr(index_module, "MEASURE_EVERY", 2)
    monkeypatch.setattr(index_module, "SLICE", 3)
    monkeypatch.setattr(index_module, "PART", 3)
    monkeypatch.setattr(resting, "AT_ONCE", 2)
    monkeypatch.setattr(resting, "PART", 0.0)
    monkeypatch.setattr(resting, "MOST_CARDS", 4)
    monkeypatch.setattr(index_module, "POLYGON_TESTS", 2)


def stopwatch() -> Callable[[], float]:
    """A clock that is a second later each time it is read."""
    return itertools.count().__next__


class Machine(RuleBasedStateMachine):
    """Anything may happen to vendors, processes, watches and clients in any order; every client must see the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE, rest_share=1e6)
        self.truth = Truth()
        self.place = PLACES[0]
        self.index.cpu_clock = stopwatch()
        self.clients = [Client(plain), Client(plain), Client(wrapped)]
        self.purses = [Purse() for _ in self.clients]
        self.watches: dict[tuple[int, str], tuple[Watch, ViewKey]] = {}
        self.sent: dict[Watch, int] = {}
        self.keys: list[ViewKey] = []
        self.names = 0
        self.spots: dict[str, tuple[int, int]] = {}

    @initialize(
        place=st.sampled_from(PLACES),
        live=st.lists(st.tuples(vendor_ids, spots), max_size=8),
        level=st.sampled_from([None, None, 0, 2]),
    )
    def begin(self, place: Place, live: list[tuple[str, tuple[int, int]]], level: int | None) -> None:
        self.place = place
        self.truth.visibility = self.index.visibility = Visibility(closed_level=level)
        for vendor_id, spot in live:
            self.card(vendor_id, True, 0)
            self.connect(vendor_id, ME, 0)
            self.fix(vendor_id, spot, 0, None)

    # vendors

    @rule(vendor_id=vendor_ids, spot=spots, age=st.sampled_from([0, 0, 0, 1, 50, -7]), heading=st.none() | st.just(9.5))
    def fix(self, vendor_id: str, spot: tuple[int, int], age: int, heading: float | None) -> None:
        truth, (lat, long) = self.truth, self.place.at(*spot)
        self.spots[vendor_id] = spot
        timestamp = truth.now - age
        held = truth.of(vendor_id).fix
        taken = held is None or Fix(timestamp, lat, long, heading, heading).replaces(Fix(*held), truth.now)
        if taken:
            truth.of(vendor_id).fix = (timestamp, lat, long, heading, heading)
        assert self.index.put_fix(vendor_id, Fix(timestamp, lat, long, heading, heading), truth.now) == taken

    @rule(vendor_id=vendor_ids, by=st.tuples(st.integers(-3, 3), st.integers(-3, 3)))
    def drive(self, vendor_id: str, by: tuple[int, int]) -> None:
        """On, from where it is: within its cell or just out of it, over an area's edge or not."""
        y, x = self.spots.get(vendor_id, (15, 15))
        self.wait(1)
        self.fix(vendor_id, (min(max(y + by[0], 0), 30), min(max(x + by[1], 0), 30)), 0, None)

    @rule(vendor_id=vendor_ids, is_open=st.booleans(), age=st.sampled_from([0, 0, 0, 5]))
    def card(self, vendor_id: str, is_open: bool, age: int) -> None:
        truth = self.truth
        self.names = (self.names + 1) % 3
        card = Card(truth.now - age, f"name {self.names}", is_open, None)
        held = truth.of(vendor_id).card
        if held is None or (card.version, card.register("")) > (held.version, held.register("")):
            truth.of(vendor_id).card = card
        self.index.put_card(vendor_id, card, truth.now)

    @rule(vendor_id=vendor_ids, owner=st.sampled_from([ME, ME, *OTHERS]), age=st.sampled_from([0, 0, 3, 900, 5_000]))
    def connect(self, vendor_id: str, owner: str, age: int) -> None:
        self.present(vendor_id, Presence(self.truth.now - age, owner, 0))

    @rule(vendor_id=vendor_ids, age=st.sampled_from([0, 0, 3, 900, 5_000]))
    def disconnect(self, vendor_id: str, age: int) -> None:
        vendor = self.truth.vendors.get(vendor_id)
        if vendor is not None and (held := vendor.presence) is not None:
            self.present(vendor_id, Presence(held.since, held.owner, self.truth.now - age))

    def present(self, vendor_id: str, presence: Presence) -> None:
        truth, owner = self.truth, presence.owner
        if owner != ME and owner not in self.index.owners:
            # The bus asks Redis when a process it has not heard of gave its last sign of life.
            at = truth.heard.setdefault(owner, truth.now)
            truth.lost[owner] = at + OFFLINE <= truth.now
            self.index.owner_heard(owner, at, truth.now)
        held = truth.of(vendor_id).presence
        taken = held is None or (presence.since, owner, presence.ended) > (held.since, held.owner, held.ended)
        if taken:
            truth.of(vendor_id).presence = presence
        assert self.index.put_presence(vendor_id, presence, truth.now) == taken

    @rule(vendor_id=vendor_ids, age=st.sampled_from([0, 0, 900, 5_000]))
    def http(self, vendor_id: str, age: int) -> None:
        truth = self.truth
        truth.of(vendor_id).http = max(truth.of(vendor_id).http, truth.now - age)
        self.index.put_http(vendor_id, truth.now - age, truth.now)

    @rule(vendor_id=vendor_ids)
    def delete(self, vendor_id: str) -> None:
        self.truth.vendors.pop(vendor_id, None)
        self.index.remove(vendor_id)

    @rule(vendor_id=vendor_ids, spot=spots, is_open=st.booleans())
    def delete_and_return(self, vendor_id: str, spot: tuple[int, int], is_open: bool) -> None:
        self.delete(vendor_id)
        self.fix(vendor_id, spot, 0, None)
        self.connect(vendor_id, ME, 0)
        self.card(vendor_id, is_open, 0)

    # processes and time

    @rule(owner=st.sampled_from(OTHERS), age=st.sampled_from([0, 0, 500]))
    def hear(self, owner: str, age: int) -> None:
        truth = self.truth
        at = truth.heard[owner] = max(truth.heard.get(owner, 0), truth.now - age)
        truth.lost[owner] = at + OFFLINE <= truth.now
        self.index.owner_heard(owner, at, truth.now)

    @rule(ms=st.sampled_from([1, 1, 10, 400, 999, 1_000, 3_500]))
    def wait(self, ms: int) -> None:
        truth = self.truth
        truth.now += ms
        if not self.index.frozen:
            for owner, at in truth.heard.items():
                truth.lost[owner] = at + OFFLINE <= truth.now
        assert truth.forget_gone() <= set(self.index.expire(truth.now))

    @rule()
    def bus_away(self) -> None:
        self.index.frozen = True

    @rule()
    def bus_back(self) -> None:
        for owner in tuple(self.index.owners):
            if owner != ME:
                self.hear(owner, 0)
        self.index.frozen = False

    # watches and clients

    @rule(
        client=st.integers(0, 2),
        id=st.sampled_from(["w1", "w2"]),
        shape=shapes,
        again=st.none() | st.integers(0, 5),
        only_open=st.booleans(),
        interval=st.sampled_from([0, 0, 5, 500]),
    )
    def watch(self, client: int, id: str, shape: Any, again: int | None, only_open: bool, interval: int) -> None:
        key = key_of(self.place, shape, only_open)
        if again is not None and self.keys:
            key = self.keys[again % len(self.keys)]
        self.keys = [key, *self.keys[:5]]
        outbox = self.clients[client]
        watch = (
            self.watches[client, id][0]
            if (client, id) in self.watches
            else Watch(id, outbox, payer=self.purses[client])
        )
        watch.interval = interval
        self.watches[client, id] = watch, key
        self.sent[watch] = 0
        ready = outbox.ready()
        self.index.watch(watch, key, self.truth.now)
        found, rest = self.index.members(key)
        assert {vendor.vendor_id for vendor in (*found, *filter(key.holds, rest))} == set(self.truth.shown(key))
        self.look({watch: ready})

    @rule(client=st.integers(0, 2), id=st.sampled_from(["w1", "w2"]))
    def unwatch(self, client: int, id: str) -> None:
        if (client, id) in self.watches:
            self.index.unwatch(self.watches.pop((client, id))[0])
            self.clients[client].views.pop(id, None)

    @rule(client=st.integers(0, 2), rest=st.sampled_from([0.0, 0.01, 0.6]))
    def use_up(self, client: int, rest: float) -> None:
        self.purses[client].rest = rest

    @rule(clients=st.sets(st.integers(0, 2)))
    def gap(self, clients: set[int]) -> None:
        ready = [watch for (client, _), (watch, _) in self.watches.items() if client in clients]
        self.index.resnapshot(ready)
        self.look({})

    @rule(client=st.integers(0, 2), room=st.sampled_from([None, None, 0, 0, 1, 2]))
    def stall(self, client: int, room: int | None) -> None:
        self.clients[client].room = room

    @rule()
    def tick(self) -> None:
        now = self.truth.now
        deliverable = {
            watch: self.clients[client].room is None and self.sent[watch] + watch.interval <= now
            for (client, _), (watch, _) in self.watches.items()
        }
        unfinished = {watch for watch, _ in self.watches.values() if watch.rest}
        ticked = self.index.tick(now)
        assert ticked.frames == sum(len(client.kinds) for client in self.clients)
        assert not self.index.has_changes
        for (client, id), (watch, _) in self.watches.items():
            came = self.clients[client].kinds.count((id, "update"))
            assert came <= 1, "more than one frame in a tick"
            early = self.sent[watch] + watch.interval > now
            assert not came or not early or watch in unfinished, "more often than the interval"
        self.look(deliverable)
        held = [
            watch
            for watch, _ in self.watches.values()
            if not deliverable[watch] or watch.view is None or watch.rest or watch.snapshot_due
        ]
        assert ticked.waiting <= len(held)

    def look(self, deliverable: dict[Watch, bool]) -> None:
        """Whoever got a frame, or could have, sees the truth."""
        came = [client.seen() for client in self.clients]
        for (client, id), (watch, key) in self.watches.items():
            got = any(of == id for of, _ in came[client])
            if got:
                self.sent[watch] = self.truth.now
            whole = not (watch.rest or watch.snapshot_due or watch.view is None)
            if whole and (got or deliverable.get(watch)):
                assert self.clients[client].views[id] == self.truth.shown(key)

    # what must hold at any time

    @invariant()
    def pending_is_bounded(self) -> None:
        if self.index.has_changes:
            return
        for (client, id), (watch, key) in self.watches.items():
            held, shown = self.clients[client].views.get(id, {}), self.truth.shown(key)
            assert {v.vendor_id for v in watch.moved} <= set(shown)
            assert len(watch.events) <= len(held) + len(shown)
            assert len(watch.moved) <= len(shown)

    @invariant()
    def grids_are_right(self) -> None:
        for level, cells in enumerate(self.index._grids):
            placed = {vendor: at for at, spot in cells.items() for vendor in spot.vendors}
            live = {vendor for vendor in self.index.vendors.values() if vendor.live}
            assert placed == {vendor: parent(cell(vendor.shown.lat, vendor.shown.long), level) for vendor in live}
            assert all(spot.vendors or spot.watched for spot in cells.values()), "an empty cell is kept"
            for spot in cells.values():
                ended = [view.ended for view in (*spot.whole, *spot.boundary)]
                assert 2 * sum(ended) <= len(ended), "views that ended are kept"
            assert not any(spot.moved or spot._joined or spot._joined_open for spot in cells.values())

    def teardown(self) -> None:
        """When all can be sent everybody sees the truth, and when all is over nothing is kept."""
        for client, purse in zip(self.clients, self.purses, strict=True):
            client.room, purse.rest = None, 0.0
        self.wait(10_000)
        for _ in range(100):
            self.tick()
            self.wait(10)
        self.tick()
        assert not self.index._waiting
        assert not self.index._resting
        for (number, id), (_, key) in self.watches.items():
            assert self.clients[number].views[id] == self.truth.shown(key)
        for watch, _ in self.watches.values():
            self.index.unwatch(watch)
        for vendor_id in self.truth.vendors:
            self.index.remove(vendor_id)
        self.index.tick(self.truth.now)
        self.index.frozen = False
        for _ in range(2):
            self.truth.now += 10_000
            self.index.expire(self.truth.now)
        assert_empty(self.index)


def assert_empty(index: LiveIndex) -> None:
    assert index.vendors == {}
    assert index.views == {}
    assert set(index.owners) <= {index.me}
    assert not any(owner.vendors for owner in index.owners.values())
    assert not any(index._grids)
    for held in (index._listed, index._changed, index._waiting, index._fresh, index._deadlines, index._moved_cells):
        assert not held
    assert not index._measured
    assert not index._resting


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), place=st.sampled_from(PLACES))
def test_long_histories(seed: int, place: Place) -> None:
    """The machine above on a busy day: many vendors and watches, and hundreds of changes."""
    rnd = random.Random(seed)
    machine = Machine()

    def spot() -> tuple[int, int]:
        return rnd.randint(0, 30), rnd.randint(0, 30)

    def shape() -> Any:
        kind = rnd.choice(["circle", "circle", "box", "box", "wide box", "polygon", "list"])
        if kind == "circle":
            return kind, spot(), rnd.choice([0.0, 300.0, 1_500.0, 4_000.0, 12_000.0, 60_000.0])
        if kind == "box":
            return kind, spot(), spot()
        if kind == "wide box":
            return kind, spot(), rnd.choice([0.1, 0.5, 1.0])
        if kind == "polygon":
            return kind, [spot() for _ in range(rnd.randint(3, 6))]
        return kind, frozenset(rnd.sample(VENDORS, rnd.randint(0, 4)))

    def vendor_id() -> str:
        return rnd.choice(VENDORS)

    def flag() -> bool:
        return rnd.random() < 0.5

    def watch() -> None:
        again = rnd.choice([None, rnd.randint(0, 5)])
        machine.watch(rnd.randint(0, 2), rnd.choice(["w1", "w2"]), shape(), again, flag(), rnd.choice([0, 0, 5, 500]))

    def drive() -> None:
        for _ in range(rnd.choice([1, 1, 2, 5])):
            machine.drive(vendor_id(), (rnd.randint(-3, 3), rnd.randint(-3, 3)))

    happenings: list[tuple[float, Callable[[], None]]] = [
        (10, drive),
        (2, lambda: machine.fix(vendor_id(), spot(), rnd.choice([0, 0, 1, -7]), rnd.choice([None, 9.5]))),
        (3, lambda: machine.card(vendor_id(), flag(), rnd.choice([0, 0, 5]))),
        (2, lambda: machine.connect(vendor_id(), rnd.choice([ME, *OTHERS]), rnd.choice([0, 0, 3, 900]))),
        (2, lambda: machine.disconnect(vendor_id(), rnd.choice([0, 0, 3, 900]))),
        (1, lambda: machine.http(vendor_id(), rnd.choice([0, 0, 900]))),
        (0.5, lambda: machine.delete(vendor_id())),
        (1.5, lambda: machine.delete_and_return(vendor_id(), spot(), flag())),
        (1.5, lambda: machine.hear(rnd.choice(OTHERS), 0)),
        (3, lambda: machine.wait(rnd.choice([1, 5, 5, 10, 100, 400, 600]))),
        (0.1, lambda: machine.wait(rnd.choice([1000, 3500]))),
        (0.1, machine.bus_away),
        (0.3, machine.bus_back),
        (2, watch),
        (0.3, lambda: machine.unwatch(rnd.randint(0, 2), rnd.choice(["w1", "w2"]))),
        (0.5, lambda: machine.gap({rnd.randint(0, 2)})),
        (3, lambda: machine.stall(rnd.randint(0, 2), rnd.choice([None, None, None, 0, 1, 2]))),
        (10, machine.tick),
    ]
    weights, acts = zip(*happenings, strict=True)
    machine.begin(place, [(id, spot()) for id in VENDORS], rnd.choice([None, None, 1]))
    for act in rnd.choices(acts, weights, k=300):
        act()
        machine.pending_is_bounded()
        machine.grids_are_right()
    machine.teardown()


TestLiveIndex = Machine.TestCase
TestLiveIndex.settings = settings(max_examples=60, stateful_step_count=50)


# single cases

AROUND = ViewKey(Circle(52.2, 21.0, 3_000.0), None, False)
INSIDE, STILL_INSIDE, OUTSIDE = (52.2, 21.0), (52.2001, 21.0), (52.3, 21.0)


def put(index: LiveIndex, vendor_id: str, at: tuple[float, float], now: int = START) -> None:
    """A vendor of this process, on the map."""
    index.put_card(vendor_id, Card(now, vendor_id, True, None), now)
    index.put_presence(vendor_id, Presence(now, ME, 0), now)
    index.put_fix(vendor_id, Fix(now, *at, None, None), now)


def watching(index: LiveIndex, client: Client, key: ViewKey = AROUND, id: str = "w", interval: int = 0) -> Watch:
    """A watch whose snapshot has been seen."""
    watch = Watch(id, client, interval)
    index.watch(watch, key, START)
    client.frames.clear()
    return watch


def with_vendor(at: tuple[float, float] = INSIDE) -> LiveIndex:
    index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE)
    put(index, "v", at)
    index.tick(START)
    return index


def counted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The same function, noting each call."""

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return call


def test_many_fixes_are_one() -> None:
    """A vendor that reports faster than the ticks come costs each customer one position, its newest."""
    index, client = with_vendor(), Client()
    watching(index, client)
    for n in range(1, 9):
        index.put_fix("v", Fix(START + n, 52.2, 21.0 + n / 10_000, None, None), START + n)
    assert index.tick(START + 9) == (1, 0)
    assert [orjson.loads(frame) for frame in client.frames] == [
        {
            "type": "update",
            "id": "w",
            "moved": [{"vendorId": "v", "lat": 52.2, "long": 21.0008, "timestamp": START + 8}],
        }
    ]


def test_out_and_back_is_a_move() -> None:
    """A vendor that leaves an area and returns between two ticks does not flicker."""
    index, client = with_vendor(), Client()
    watching(index, client)
    index.put_fix("v", Fix(START + 1, *OUTSIDE, None, None), START)
    index.put_fix("v", Fix(START + 2, *STILL_INSIDE, None, None), START)
    index.tick(START)
    assert [set(orjson.loads(frame)) for frame in client.frames] == [{"type", "id", "moved"}]


def test_in_and_out_is_nothing() -> None:
    """A vendor that crosses an area between two ticks was never there."""
    index, client = with_vendor(OUTSIDE), Client()
    watching(index, client)
    index.put_fix("v", Fix(START + 1, *INSIDE, None, None), START)
    index.put_fix("v", Fix(START + 2, *OUTSIDE, None, None), START)
    assert index.tick(START) == (0, 0)


def test_deleted_and_back_is_a_card() -> None:
    """A vendor deleted and created again between two ticks stays on the map, with the new card."""
    index, client = with_vendor(), Client()
    watching(index, client)
    index.remove("v")
    put(index, "v", INSIDE, START + 1)
    index.tick(START)
    assert [set(orjson.loads(frame)) for frame in client.frames] == [{"type", "id", "entered"}]


def test_after_its_card_a_vendor_moves_again() -> None:
    """A card is sent when it changes, not with every position after."""
    index, client = with_vendor(), Client()
    watching(index, client)
    index.put_card("v", Card(START + 1, "new", True, None), START)
    index.tick(START)
    index.put_fix("v", Fix(START + 2, *STILL_INSIDE, None, None), START)
    index.tick(START)
    assert [set(orjson.loads(frame)) - {"type", "id"} for frame in client.frames] == [{"entered"}, {"moved"}]


def test_a_shared_view_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred customers in one place cost one encoding: the very same bytes go to all of a kind."""
    index = with_vendor()
    clients = [Client(plain) for _ in range(100)] + [Client(wrapped) for _ in range(100)]
    for client in clients:
        watching(index, client)
    assert len(index.views) == 1
    encoded: list[Any] = []
    monkeypatch.setattr(vendor_module, "encode_fix", counted(encode_fix, encoded))
    monkeypatch.setattr(view_module, "update_body", counted(update_body, encoded))
    index.put_fix("v", Fix(START + 1, *STILL_INSIDE, None, None), START)
    assert index.tick(START).frames == 200
    assert len(encoded) == 2
    assert len({id(client.frames[-1]) for client in clients}) == 2


def test_a_fix_is_encoded_once_for_all_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Customers with areas of their own share each vendor's bytes."""
    index, client = with_vendor(), Client()
    for n in range(20):
        watching(index, client, ViewKey(Circle(52.2, 21.0, 3_000.0 + n), None, False), f"w{n}")
    encoded: list[Any] = []
    monkeypatch.setattr(vendor_module, "encode_fix", counted(encode_fix, encoded))
    index.put_fix("v", Fix(START + 1, *STILL_INSIDE, None, None), START)
    assert index.tick(START).frames == 20
    assert len(encoded) == 1


def test_a_stalled_watch_costs_a_look() -> None:
    """A client that reads nothing costs one check of whether it is ready, and no more, while nothing changes."""
    index, client = with_vendor(), Client()
    watch = watching(index, client)
    client.room = 0
    index.put_fix("v", Fix(START + 1, *STILL_INSIDE, None, None), START)
    assert index.tick(START) == (0, 1)
    pending = watch.moved
    for _ in range(5):
        assert index.tick(START) == (0, 1)
    assert watch.moved is pending
    assert not client.frames
    client.room = None
    assert index.tick(START) == (1, 0)
    assert index.tick(START) == (0, 0)


def test_what_a_stalled_watch_keeps_is_bounded() -> None:
    """A client that never reads costs no more than the vendors in its area, whatever they do."""
    index, client = with_vendor(), Client()
    watch = watching(index, client)
    client.room = 0
    for n in range(1, 200):
        index.remove(f"w{n % 3}")
        put(index, f"w{n % 3}", INSIDE, START + n)
        index.put_fix("v", Fix(START + n, *(OUTSIDE if n % 2 else INSIDE), None, None), START)
        index.tick(START)
    assert len(watch.events) + len(watch.moved) <= 5


def test_moving_a_watch_waits_for_no_interval() -> None:
    """A map dragged elsewhere shows what is there as soon as the client can take it."""
    index, client = with_vendor(), Client()
    watch = watching(index, client, interval=60_000)
    client.room = 0
    index.watch(watch, ViewKey(None, frozenset({"v"}), False), START + 1)
    client.room = None
    assert index.tick(START + 2) == (1, 0)
    assert set(client.views["w"]) == {"v"}


@pytest.mark.parametrize("interval", [0, 500])
def test_a_clock_that_is_set_back_holds_no_update_back(interval: int) -> None:
    """Every map would freeze for as long as the step was: an hour of a wrong clock, or seconds after NTP's."""
    index, client = with_vendor(), Client()
    watching(index, client, interval=interval)
    index.put_fix("v", Fix(START + 1, *STILL_INSIDE, None, None), START + 1_000)
    index.tick(START + 1_000)
    index.put_fix("v", Fix(START + 2, *INSIDE, None, None), START - HOUR)
    assert index.tick(START - HOUR) == (1, 0)


def test_a_clock_that_was_ahead_hides_nothing() -> None:
    """A status or a ping over HTTP that came while the clock was ahead must not hide those after it was set right."""
    cards = [Card(START + HOUR, "V", True, None), Card(START + 1, "V", False, None)]
    for order in (cards, cards[::-1]):
        index = with_vendor()
        for card in order:
            index.put_card("v", card, START)
        assert not index.vendors["v"].card.open, "the same in every process, whichever came first"
    index.put_http("v", START + HOUR, START + HOUR)
    assert index.put_http("v", START, START)


def test_a_gap_right_after_the_start() -> None:
    """A snapshot that must be made good before the next tick, for a client that just stalled, comes when it wakes."""
    index, client = with_vendor(), Client()
    index.put_fix("v", Fix(START + 1, *STILL_INSIDE, None, None), START)
    watch = watching(index, client)
    client.room = 0
    index.resnapshot([watch])
    assert index.tick(START) == (0, 1)
    index.put_fix("v", Fix(START + 2, *INSIDE, None, None), START)
    assert index.tick(START) == (0, 1)
    client.room = None
    assert index.tick(START) == (1, 0)
    assert client.kinds[-1] == ("w", "snapshot")
    assert client.views["w"]["v"]["timestamp"] == START + 2


def test_one_client_watching_twice() -> None:
    """Two watches of one connection are two views; ending one leaves the other."""
    index, client = with_vendor(), Client()
    first = watching(index, client, id="a")
    watching(index, client, ViewKey(AROUND.area, None, True), "b")
    index.unwatch(first)
    index.unwatch(first)
    index.put_card("v", Card(START + 1, "v", False, None), START)
    index.tick(START)
    assert [orjson.loads(frame) for frame in client.frames] == [{"type": "update", "id": "b", "left": ["v"]}]


def test_a_tick_that_breaks_is_made_good() -> None:
    """If a tick dies in the middle no customer is left with half of it: everyone gets a snapshot."""

    class Broken(Client):
        def write(self, frame: bytes) -> None:
            raise RuntimeError("broken")

    index, client, other = with_vendor(), Client(), Client()
    watch = Watch("w", Broken(room=0))
    index.watch(watch, AROUND, START)
    watching(index, client)
    watching(index, other, ViewKey(None, frozenset({"v", "w"}), False))
    index.tick(START)
    put(index, "w", INSIDE, START + 1)
    index.remove("v")
    assert isinstance(watch.writer, Client)
    watch.writer.room = None
    with pytest.raises(RuntimeError, match="broken"):
        index.tick(START)
    index.unwatch(watch)
    assert index.tick(START) == (2, 0)
    assert client.views["w"] == other.views["w"]
    assert set(client.views["w"]) == {"w"}
    assert index.tick(START) == (0, 0)


def test_a_vendor_that_comes_back_in_time_never_flickers() -> None:
    """A vendor whose app reconnects, to whichever process, is not shown offline in between."""
    index, client = with_vendor(), Client()
    watching(index, client)
    index.put_presence("v", Presence(START, ME, START + 100), START + 100)
    index.expire(START + 99 + OFFLINE)
    index.owner_heard("other", START + 99 + OFFLINE, START + 99 + OFFLINE)
    index.put_presence("v", Presence(START + 99 + OFFLINE, "other", 0), START + 99 + OFFLINE)
    index.expire(START + 100 + OFFLINE)
    assert index.tick(START + 100 + OFFLINE) == (0, 0)


def test_a_vendor_goes_offline_then_leaves() -> None:
    """A vendor goes offline when its time is over and leaves later, and its departure is reported once."""
    index, client = with_vendor(), Client()
    watching(index, client)
    index.put_presence("v", Presence(START, ME, START), START)
    assert index.expire(START + OFFLINE - 1) == []
    assert index.tick(START) == (0, 0)
    assert index.expire(START + OFFLINE) == []
    index.tick(START + OFFLINE)
    assert client.views["w"]["v"]["online"] is False
    assert index.expire(START + OFFLINE + LEAVE - 1) == []
    assert index.expire(START + OFFLINE + LEAVE) == ["v"]
    assert index.expire(START + OFFLINE + LEAVE) == []
    index.tick(START + OFFLINE + LEAVE)
    assert client.views["w"] == {}


def test_a_vendor_of_a_process_without_heartbeat_yet() -> None:
    """A vendor of a process that just started is there from the start, though that process was not heard yet."""
    index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE)
    index.put_presence("v", Presence(START, "new", 0), START)
    index.put_card("v", Card(START, "v", True, None), START)
    index.put_fix("v", Fix(START, *INSIDE, None, None), START)
    assert [vendor.online for vendor in index.members(AROUND)[0]] == [True]
    index.owner_heard("new", START + OFFLINE, START + OFFLINE)
    index.expire(START + OFFLINE)
    assert [vendor.online for vendor in index.members(AROUND)[0]] == [True]


def test_a_vendor_without_presence_is_not_kept() -> None:
    """What is heard late of vendors long gone does not fill the memory."""
    index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE)
    index.put_fix("v", Fix(START, *INSIDE, None, None), START)
    index.put_card("w", Card(START, "w", True, None), START)
    index.put_presence("x", Presence(1, "gone", 2), START)
    assert index.expire(START) == ["x"]
    assert set(index.vendors) == {"v", "w"}
    index.tick(START)
    index.expire(START + OFFLINE)
    index.tick(START + OFFLINE)
    index.expire(START + OFFLINE)
    assert_empty(index)


def test_a_fix_of_a_vendor_whose_time_is_over() -> None:
    """Whoever asks whether a fix was taken may look the vendor up."""
    index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE)
    index.put_http("v", START, START)
    assert index.put_fix("v", Fix(START, *INSIDE, None, None), START + OFFLINE + LEAVE)
    assert not index.vendors["v"].live
    assert index.expire(START + OFFLINE + LEAVE) == ["v"]
    assert "v" not in index.vendors


def test_many_vendors_expire_in_steps() -> None:
    """The end of a process with many vendors must not stop the event loop of every other one."""
    index, count = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE), 2 * AT_ONCE
    index.owner_heard("other", START, START)
    for number in range(count):
        index.put_presence(f"v{number}", Presence(START, "other", 0), START)
    index.expire(START + OFFLINE)
    assert sum(not vendor.online for vendor in index.vendors.values()) == AT_ONCE
    index.expire(START + OFFLINE)
    assert not index.due(START + OFFLINE)
    assert not any(vendor.online for vendor in index.vendors.values())
    assert len(index.expire(START + OFFLINE + LEAVE)) == AT_ONCE
    assert len(index.expire(START + OFFLINE + LEAVE)) == count - AT_ONCE
    index.tick(START)
    index.expire(START + OFFLINE + LEAVE)
    assert_empty(index)


def test_pings_over_http_do_not_pile_up() -> None:
    """A vendor that pings over HTTP for hours is one deadline, not one for each ping."""
    index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE)
    for n in range(1_000):
        index.put_http("v", START + n, START + n)
        index.put_presence("w", Presence(START + n, ME, 0), START + n)
        index.put_presence("w", Presence(START + n, ME, START + n), START + n)
        index.expire(START + n)
    assert len(index._deadlines) <= 4


def test_in_bus_cell() -> None:
    """The broker finds the live vendors of a cell, and none of an unknown one."""
    index = with_vendor()
    assert [vendor.vendor_id for vendor in index.in_bus_cell(bus_cell(*INSIDE))] == ["v"]
    assert index.in_bus_cell(bus_cell(-10.0, 0.0)) == ()


EDGE = ViewKey(Circle(52.2, 21.01, 1_500.0), None, False)
"""A circle at whose boundary the vendors of these tests are."""


def move(index: LiveIndex, step: int, now: int) -> tuple[int, int]:
    index.put_fix("v", Fix(now, 52.2, 21.0 + step / 100_000), now)
    return index.tick(now)


def test_a_watch_that_costs_too_much_rests() -> None:
    """Otherwise one client's polygons over a busy town would take a core for as long as they are watched."""
    index, client, purse = with_vendor(), Client(), Purse()
    index.cpu_clock = stopwatch()
    watch = Watch("w", client, payer=purse)
    index.watch(watch, EDGE, START)
    purse.rest = 2.0
    moves = [move(index, step, START + step) for step in range(1, 4)]
    assert purse.charged == pytest.approx(2.0), "of two moves one was measured, and it stands for both"
    assert purse.told == ["w"]
    assert moves[-1] == (0, 1), "nothing is tested for it, but the next tick comes"
    assert index.views == {}
    before = len(client.frames)
    purse.rest = 0.0
    assert move(index, 4, START + 400) == (0, 1)
    assert len(client.frames) == before
    assert move(index, 5, START + 1_000) == (1, 0)
    assert client.kinds[-1] == ("w", "snapshot")
    assert client.views["w"]["v"]["long"] == 21.00005
    assert purse.charged == pytest.approx(3.0), "the snapshot is paid for too"


def test_a_client_over_its_budget_gets_an_answer() -> None:
    """Whoever opens a watch waits for its snapshot, and gets no more than that before it may."""
    index, client, purse = with_vendor(), Client(), Purse(rest=1.0)
    index.cpu_clock = stopwatch()
    index.watch(Watch("w", client, payer=purse), EDGE, START)
    for second in range(1, 100):
        move(index, second, START + second * 1_000)
    assert client.kinds == [("w", "snapshot")]
    assert purse.told == ["w"]


def test_a_shared_view_goes_on_for_the_others() -> None:
    """Who watches the same as a heavy client pays a share of it, and sees every move."""
    index, poor, rich = with_vendor(), Client(), Client()
    index.cpu_clock = stopwatch()
    purses = Purse(), Purse()
    for client, purse in zip((poor, rich), purses, strict=True):
        index.watch(Watch("w", client, payer=purse), EDGE, START)
    purses[0].rest = 60.0
    for step in range(1, 6):
        move(index, step, START + step)
    assert purses[0].charged == pytest.approx(1.0)
    assert rich.views["w"]["v"]["long"] == 21.00005
    assert poor.views["w"]["v"]["long"] < 21.00005


@pytest.mark.parametrize("end", ["unwatch", "watch"])
def test_a_resting_watch_can_be_ended_or_moved(end: str) -> None:
    """What the customer wants next counts, and nothing comes back of what it wanted before."""
    index, client, purse = with_vendor(), Client(), Purse()
    index.cpu_clock = stopwatch()
    watch = Watch("w", client, payer=purse)
    index.watch(watch, EDGE, START)
    purse.rest = 2.0
    for step in range(1, 4):
        move(index, step, START + step)
    purse.rest = 0.0
    if end == "unwatch":
        index.unwatch(watch)
    else:
        index.watch(watch, ViewKey(None, frozenset(), False), START + 4)
    shown = len(client.frames)
    assert move(index, 5, START + 10_000) == (0, 0)
    assert len(client.frames) == shown


def test_cells_wholly_inside_are_not_charged() -> None:
    """Vendors that moved in a cell inside an area are joined once for all: only tests at its boundary cost."""
    index, client, purse = with_vendor(), Client(), Purse()
    index.cpu_clock = stopwatch()
    index.watch(Watch("w", client, payer=purse), ViewKey(Box(51.9, 20.5, 52.5, 21.5), None, False), START)
    for step in range(1, 20):
        move(index, step, START + step)
    assert purse.charged == 0


def crowd(count: int) -> LiveIndex:
    index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE)
    for number in range(count):
        put(index, f"v{number}", (52.2, 21.0 + number / 10_000))
    index.tick(START)
    return index


@pytest.mark.parametrize("key", [AROUND, EDGE, ViewKey(AROUND.area, None, True)], ids=["around", "edge", "open"])
def test_a_large_snapshot_comes_in_parts(key: ViewKey) -> None:
    """All vendors of a metropolis at once would delay everybody's updates, so each tick sends a part of them."""
    index, client = crowd(10), Client()
    index.watch(Watch("w", client, 60_000), key, START)
    assert len(client.views["w"]) <= 3
    ticks = 0
    while index.unfinished:
        ticks += 1
        assert index.tick(START + ticks).frames <= 1
    expected = {f"v{n}" for n in range(10) if key.area is not None and key.area.contains(52.2, 21.0 + n / 10_000)}
    assert client.views["w"].keys() == expected
    assert 3 <= ticks <= 4
    index.put_fix("v0", Fix(START + 1, 52.2001, 21.0), START + 9)
    index.tick(START + 9)
    assert client.kinds[-1] == ("w", "update")
    assert client.views["w"]["v0"]["lat"] == 52.2, "from now on the watch has its interval"


def test_what_happens_while_a_large_snapshot_is_sent() -> None:
    """A vendor that moves, enters, closes or leaves meanwhile is correct at the end, and never reported twice."""
    index, client = crowd(8), Client()
    index.watch(Watch("w", client), AROUND, START)
    first = set(client.views["w"])
    later = sorted({f"v{n}" for n in range(8)} - first)
    index.put_fix(later[0], Fix(START + 1, 52.2002, 21.0), START + 1)
    index.put_fix(later[1], Fix(START + 1, 10.0, 10.0), START + 1)
    index.put_card(later[2], Card(START + 1, later[2], False, None), START + 1)
    index.remove(later[3])
    put(index, "new", (52.2, 21.0), START + 1)
    while index.has_changes or index.unfinished:
        index.tick(START + 1)
    assert client.views["w"].keys() == {*first, later[0], later[2], later[4], "new"}
    assert client.views["w"][later[0]]["lat"] == 52.2002
    assert client.views["w"][later[2]]["open"] is False
    assert client.left == []
