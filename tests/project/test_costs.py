"""docs/limits.md lists what messages and reads cost at their most expensive: none may hold the event loop for long."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from math import inf
from time import thread_time
from typing import cast

import orjson
import pytest

from streamer.geo.grid import bus_cover, cover, cover_level
from streamer.geo.shapes import Area, Circle, Polygon, distance
from streamer.ingest.cost import CostBudgets, CostLimits
from streamer.live import watch as live_watch
from streamer.live.fix import Fix
from streamer.live.index import POLYGON_TESTS, SLICE, LiveIndex
from streamer.live.resting import Resting
from streamer.live.vendor import Card, Presence
from streamer.live.view import ViewKey
from streamer.protocol import history
from streamer.protocol.bounds import Bounds
from streamer.protocol.frames import text_frame
from streamer.protocol.history import LocationRow
from streamer.protocol.messages import (
    Watch,
    decode_vendor,
    decode_watch,
)
from streamer.transport.problem import json_response
from streamer.transport.watch_budget import WatchBudget
from streamer.transport.writer import Writer
from tests.support.paths import ROOT

NOW = 1_732_467_600_000
HOLD = 0.005
"""CPU seconds for which one message or one slice of a read may hold the event loop."""
REFERENCE = 0.004
"""CPU seconds that `reference` takes on the machine of the page's figures."""
ZIGZAG = [[21 + number * 0.006, 52 + (number % 2) * 1.2] for number in range(199)]
SHEAF = [[21 + (number % 2) * 1.2 + number * 1e-6, 52 + (number % 2) * 1.2] for number in range(199)]
ROWS = [LocationRow(f"c{number:024}", NOW + number, 52.0, 21.0) for number in range(500)]
PINGS = [{"lat": 52, "lon": "x" if number % 2 else 21, "timestamp": "2024-11-24T17:00:00Z"} for number in range(500)]


def slowness() -> float:
    """How much longer than on that machine work takes here; a busy core and its caches make all of it slower."""

    def reference() -> None:
        orjson.dumps([{"number": number, "text": str(number)} for number in range(10_000)])

    return max(1.0, cpu_time(reference) / REFERENCE)


@cache
def metropolis() -> LiveIndex:
    """A process that knows 50,000 vendors around one place."""
    index = LiveIndex("me")
    for number in range(50_000):
        id = f"v{number:024}"
        index.put_card(id, Card(NOW, "Ice cream of the old town", True, None), NOW)
        index.put_presence(id, Presence(NOW, "me", 0), NOW)
        index.put_fix(id, Fix(NOW, 52 + number % 353 / 300, 21 + number % 359 / 300, 90.0, 4.2), NOW)
    index.tick(NOW)
    return index


class Nowhere:
    """A client that takes everything."""

    framing = staticmethod(text_frame)

    def ready(self) -> bool:
        return True

    def write(self, frame: bytes) -> None:
        pass


WATCH = live_watch.Watch("w", Nowhere())


def unencoded() -> None:
    """All vendors moved since they were last sent."""
    for vendor in metropolis().vendors.values():
        vendor.forget_encoded()


def first_thousand() -> None:
    """The snapshot of an area with many vendors, as far as it is made at once."""
    metropolis().watch(WATCH, ViewKey(Circle(52.6, 21.6, 100_000), None, False), NOW)


def begun() -> None:
    unencoded()
    first_thousand()


class Over(WatchBudget):
    """A client that has a turn whenever it may."""

    def excess(self) -> float:
        return 0.0

    def calm(self) -> bool:
        return False


@cache
def rest() -> Resting:
    """The watches that rest of a process: one, over the whole metropolis, whose snapshot is begun."""
    index = metropolis()
    index.tick(NOW)
    found = Resting(index._find, index._watch, thread_time, inf)
    budget = Over(CostBudgets(CostLimits()).client(None, 0.0), cast(Writer, Nowhere()), lambda: 0.0)
    zigzag = Polygon(tuple((long, lat) for long, lat in ZIGZAG))
    found.add(live_watch.Watch("r", Nowhere(), payer=budget), ViewKey(zigzag, None, False), NOW, owed=True)
    found.step(NOW)
    return found


def answered() -> None:
    """An answer with as many vendors as one may ask for."""
    vendors = list(metropolis().vendors.values())[:1000]
    json_response({"vendors": [{**vendor.card_fields(), "distance": 1.5} for vendor in vendors]})


def watched(area: object) -> Area:
    message = decode_watch(orjson.dumps({"type": "watch", "id": "w", "area": area}), Bounds())
    assert type(message) is Watch
    assert message.area is not None
    return message.area


def opened(area: Area) -> None:
    """What opening a watch does in one step, beside its snapshot."""
    index = LiveIndex("me")
    index.members(ViewKey(area, None, False))


def snapshot_of(corners: list[list[float]]) -> None:
    """Vendors in a polygon that was just sent are tested, as many as at once."""
    polygon = Polygon(tuple((long, lat) for long, lat in corners))
    for number in range(SLICE // POLYGON_TESTS):
        polygon.contains(52 + number % 17 / 15, 21 + number % 19 / 17)


COSTS: dict[str, Callable[[], object]] = {
    "`pings`, 500 of them, half rejected": lambda: decode_vendor(
        orjson.dumps({"type": "pings", "pings": PINGS}), NOW, None, Bounds()
    ),
    "`watch`, a circle of 100 km": lambda: opened(watched({"center": {"lat": 52, "long": 21}, "radius": 100_000})),
    "`watch`, a zigzag of 199 vertices: decoding": lambda: watched({"polygon": ZIGZAG}),
    "… the channels it needs": lambda: bus_cover(watched({"polygon": ZIGZAG})),
    "… its cells": lambda: opened(watched({"polygon": ZIGZAG})),
    "… 250 vendors tested for its snapshot": lambda: snapshot_of(ZIGZAG),
    "`watch`, 199 edges along one line": lambda: snapshot_of(SHEAF),
    "`watch`, a list of 200 vendors": lambda: decode_watch(
        orjson.dumps({"type": "watch", "id": "w", "vendors": [str(number) for number in range(200)]}), Bounds()
    ),
    "`GET …/locations`, each 500 rows as GeoJSON": lambda: history.encode_rows(history.Format.GEOJSON, "v", ROWS),
    "… as GPX": lambda: history.encode_rows(history.Format.GPX, "v", ROWS),
    "`GET …/nearby`, each 500 vendors": lambda: sorted(distance(52, 21, 52, 21 + row.timestamp % 7) for row in ROWS),
    "… its answer, 1,000 vendors": answered,
    "`watch`, an area with 50,000 vendors: the first thousand": first_thousand,
    "… its next vendors, in each tick": lambda: metropolis().tick(NOW),
    "`watch`, a zigzag that rests: each turn": lambda: rest().step(NOW),
}
PREPARED: dict[str, Callable[[], object]] = {
    "`watch`, an area with 50,000 vendors: the first thousand": unencoded,
    "… its next vendors, in each tick": begun,
    "`watch`, a zigzag that rests: each turn": unencoded,
}
"""What comes before a step and is not measured."""


@pytest.mark.parametrize("name", COSTS)
def test_no_message_holds_the_loop(name: str) -> None:
    """Everyone waits while one message is handled; CPU time of the best of many, so a busy machine is no failure."""
    best = inf
    for _ in range(30):
        best = min(best, cpu_time(COSTS[name], PREPARED.get(name)) / slowness())
        if best < HOLD:
            return
    pytest.fail(f"{best * 1000:.1f} ms")


def test_the_table_is_complete() -> None:
    """The page lists what is measured here, and nothing that is not."""
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    table = page.split("## CPU time")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`|…)[^|]+?) \| [\d.]+ ms \|", table, re.MULTILINE)
    assert rows == list(COSTS)


def test_a_polygon_costs_a_few_times_a_circle() -> None:
    """A polygon of 199 vertices on a map of moving vendors costs a few times a circle, not two hundred times."""
    circle, zigzag = Circle(52.6, 21.6, 60_000), Polygon(tuple((long, lat) for long, lat in ZIGZAG))
    spots = [(52 + number % 17 / 15, 21 + number % 19 / 17) for number in range(1000)]

    def tests(area: Area) -> Callable[[], object]:
        return lambda: [area.contains(lat, long) for lat, long in spots]

    tests(zigzag)()
    plain, costly = (min(cpu_time(tests(area)) for _ in range(5)) for area in (circle, zigzag))
    assert costly < 25 * plain
    cells = cover(zigzag, cover_level(zigzag))
    assert len(cells.full) + len(cells.boundary) <= 150


def cpu_time(work: Callable[[], object], prepare: Callable[[], object] | None = None) -> float:
    if prepare is not None:
        prepare()
    began = thread_time()
    work()
    return thread_time() - began
