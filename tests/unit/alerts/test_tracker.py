"""The tracker finds every alert that a change concerns: compared with evaluating all alerts each time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import cos, pi
from typing import Any

import pytest

from streamer.alerts.alert import Alert, State
from streamer.alerts.edges import holds
from streamer.alerts.rules import Seen
from streamer.alerts.rules import State as Known
from streamer.alerts.tracker import Tracker
from streamer.geo.shapes import distance
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Before, Card, Presence, Vendor
from streamer.live.visibility import Visibility
from streamer.protocol.alerts import stored_definition
from streamer.storage.alerts import Evaluated

METRES = 111_195.0
CENTRES = [(52.2297, 21.0122), (-17.0, 179.9995), (89.7, 10.0), (0.0, 0.0)]


def alert(id: str, **source: Any) -> Alert:
    source = {"on": ["entered", "left"], **source}
    return Alert(Evaluated(id, 1, source, 0, None, True, False, 0, 0), stored_definition(source, 0))


def offset(centre: tuple[float, float], north: float, east: float) -> tuple[float, float]:
    lat = min(89.99, centre[0] + north / METRES)
    long = centre[1] + east / (METRES * cos(lat * pi / 180))
    return lat, (long + 180.0) % 360.0 - 180.0


class Stage:
    """An index, a tracker that follows it, and who is inside what by looking at everything."""

    def __init__(self) -> None:
        self.index = LiveIndex("me")
        self.tracker = Tracker(self.look)
        self.alerts: list[Alert] = []
        self.looks = 0
        self.inside: set[tuple[str, str]] = set()
        self.expected: set[tuple[str, str]] = set()
        self.now = 1_800_000_000_000
        self.index.observer = self.observe

    def observe(self, changed: Mapping[Vendor, Before]) -> None:
        vendors = self.index.vendors
        self.tracker.changed([v for v in changed if vendors.get(v.vendor_id) in (v, None)])

    def look(self, alert: Alert, vendor_id: str, inside: bool, _: Vendor | None) -> None:
        self.looks += 1
        state = alert.states.get(vendor_id) or State()
        state.known = Known(Seen(inside, False, False), {}, 0)
        self.tracker.keep(alert, vendor_id, state)
        (self.inside.add if inside else self.inside.discard)((alert.id, vendor_id))
        if not inside:
            self.tracker.drop(alert, vendor_id)

    def add(self, alert: Alert) -> None:
        self.alerts.append(alert)
        self.tracker.add(alert)
        for vendor in list(self.tracker.inside(alert, self.index)):
            self.tracker.look(alert, vendor)

    def remove(self, alert: Alert) -> None:
        self.alerts.remove(alert)
        self.tracker.remove(alert)
        for held in (self.inside, self.expected):
            held -= {pair for pair in held if pair[0] == alert.id}

    def put(self, vendor_id: str, place: tuple[float, float]) -> None:
        self.now += 1000
        if vendor_id not in self.index.vendors:
            self.index.put_card(vendor_id, Card(self.now, vendor_id, True, None), self.now)
            self.index.put_presence(vendor_id, Presence(self.now, "me", 0), self.now)
        self.index.put_fix(vendor_id, Fix(self.now, *place), self.now)

    def tick(self) -> None:
        self.index.tick(self.now)
        for alert in self.alerts:
            for vendor_id in {*self.index.vendors, *(id for _, id in self.expected)}:
                vendor = self.index.vendors.get(vendor_id)
                pair = alert.id, vendor_id
                if vendor is None or not vendor.live:
                    holding = False
                elif alert.area is None:
                    holding = vendor_id in (alert.definition.vendors or ())
                else:
                    holding = holds(
                        alert.area, alert.margin, pair in self.expected, vendor.shown.lat, vendor.shown.long
                    )
                (self.expected.add if holding else self.expected.discard)(pair)
        assert self.inside == self.expected


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("seed", range(4))
def test_every_change_is_found(centre: tuple[float, float], seed: int) -> None:
    """Vendors stand, walk, drive and jump, leave the map and come back, while alerts come and go."""
    chance = random.Random(seed)
    stage = Stage()
    places: dict[str, tuple[float, float]] = {f"v{n}": (0.0, 0.0) for n in range(6)}
    made = 0

    def new() -> Alert:
        nonlocal made
        made += 1
        north, east = chance.uniform(-400, 400), chance.uniform(-400, 400)
        lat, long = offset(centre, north, east)
        kind = chance.randrange(4)
        size = chance.choice([5, 60, 150, 400, 3000])
        if kind == 0:
            return alert(f"a{made}", vendors=[f"v{chance.randrange(6)}"])
        if kind == 1:
            ne, sw = offset((lat, long), size, size), offset((lat, long), -size, -size)
            box = {"ne": {"lat": ne[0], "long": ne[1]}, "sw": {"lat": sw[0], "long": sw[1]}}
            return alert(f"a{made}", area=box)
        if kind == 2 and abs(lat) < 89:
            ring = [offset((lat, long), *at) for at in ((-size, -size), (size, -size / 2), (0, 0), (size / 2, size))]
            return alert(f"a{made}", area={"polygon": [[long, lat] for lat, long in ring]})
        return alert(f"a{made}", area={"center": {"lat": lat, "long": long}, "radius": size})

    for _ in range(20):
        stage.add(new())
    stage.tick()
    for _ in range(400):
        for vendor_id in places:
            what = chance.random()
            north, east = places[vendor_id]
            pace = 2.0 if what < 0.5 else 12.0 if what < 0.8 else 40.0 if what < 0.95 else 500.0
            north, east = north + chance.gauss(0, pace), east + chance.gauss(0, pace)
            if abs(north) > 600 or abs(east) > 600:
                north, east = 0.0, 0.0
            places[vendor_id] = north, east
            stage.put(vendor_id, offset(centre, north, east))
            if chance.random() < 0.02:
                stage.index.remove(vendor_id)
        stage.tick()
        for _ in range(12 if chance.random() < 0.02 else chance.random() < 0.1):
            stage.add(new())
            stage.expected |= {pair for pair in stage.inside if pair[0] == stage.alerts[-1].id}
        if chance.random() < (0.3 if len(stage.alerts) > 25 else 0.1):
            stage.remove(chance.choice(stage.alerts))
        stage.tick()


def test_a_vendor_that_stands_far_from_all_edges_costs_nothing() -> None:
    """Otherwise, with a hundred thousand alerts, each ping would be compared with hundreds of areas."""
    stage = Stage()
    for n in range(200):
        lat, long = offset(CENTRES[0], n * 0.1, 0)
        stage.add(alert(f"a{n}", area={"center": {"lat": lat, "long": long}, "radius": 500}))
    stage.put("v1", CENTRES[0])
    stage.tick()
    assert len(stage.inside) == 200
    looks = stage.looks
    chance = random.Random(1)
    for _ in range(50):
        stage.put("v1", offset(CENTRES[0], chance.gauss(0, 3), chance.gauss(0, 3)))
        stage.tick()
    assert stage.looks == looks


def test_a_vendor_that_leaves_as_its_card_changes_comes_back() -> None:
    """A vendor is evaluated for its card first: if it still counted as inside, its return would never be found."""
    stage, (lat, long) = Stage(), CENTRES[0]
    stage.add(alert("a", area={"center": {"lat": lat, "long": long}, "radius": 500}))
    for is_open, north in ((True, 490.0), (False, 525.0), (False, 490.0), (True, 525.0), (True, 490.0)):
        stage.put("v", offset(CENTRES[0], north, 0.0))
        stage.index.put_card("v", Card(stage.now, "v", is_open, None), stage.now)
        stage.tick()
        assert stage.inside == ({("a", "v")} if north < 500.0 else set())


def test_a_closed_vendor_is_inside_where_it_is_shown() -> None:
    """Otherwise alerts on small areas would reveal where a driver lives whom every map shows coarsely."""
    stage, home = Stage(), (52.2304, 21.0129)
    stage.index.visibility = Visibility.of("coarse", "yes", 1000.0)
    shown = stage.index.visibility.coarse_position(*home)
    assert distance(*home, *shown) > 200
    for id, place in (("home", home), ("shown", shown)):
        stage.add(alert(id, area={"center": {"lat": place[0], "long": place[1]}, "radius": 100}))
    stage.put("v", home)
    stage.index.tick(stage.now)
    assert stage.inside == {("home", "v")}
    stage.index.put_card("v", Card(stage.now + 1, "v", False, None), stage.now + 1)
    stage.index.tick(stage.now + 1)
    assert stage.inside == {("shown", "v")}
    stage.put("v", offset(home, 30.0, 30.0))
    stage.index.tick(stage.now)
    assert stage.inside == {("shown", "v")}
