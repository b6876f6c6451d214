"""docs/limits.md lists what messages and reads cost at their most expensive: none may hold the event loop for long."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import thread_time

import orjson
import pytest

from streamer.geo.grid import bus_cover, cover, cover_level
from streamer.geo.shapes import Area, Circle, Polygon, distance
from streamer.live.index import LiveIndex
from streamer.live.view import ViewKey
from streamer.protocol import history
from streamer.protocol.messages import Bounds, Watch, decode_vendor, decode_watch
from streamer.storage.store import LocationRow
from tests.support.paths import ROOT

NOW = 1_732_467_600_000
HOLD = 0.005
"""CPU seconds for which one message or one slice of a read may hold the event loop."""
ZIGZAG = [[21 + number * 0.006, 52 + (number % 2) * 1.2] for number in range(199)]
SHEAF = [[21 + (number % 2) * 1.2 + number * 1e-6, 52 + (number % 2) * 1.2] for number in range(199)]
ROWS = [LocationRow(f"c{number:024}", NOW + number, 52.0, 21.0) for number in range(500)]
PINGS = [{"lat": 52, "lon": "x" if number % 2 else 21, "timestamp": "2024-11-24T17:00:00Z"} for number in range(500)]


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
    """Each of 300 vendors in a polygon that was just sent is tested."""
    polygon = Polygon(tuple((long, lat) for long, lat in corners))
    for number in range(300):
        polygon.contains(52 + number % 17 / 15, 21 + number % 19 / 17)


COSTS: dict[str, Callable[[], object]] = {
    "`pings`, 500 of them, half rejected": lambda: decode_vendor(
        orjson.dumps({"type": "pings", "pings": PINGS}), NOW, None, Bounds()
    ),
    "`watch`, a circle of 100 km": lambda: opened(watched({"center": {"lat": 52, "long": 21}, "radius": 100_000})),
    "`watch`, a zigzag of 199 vertices: decoding": lambda: watched({"polygon": ZIGZAG}),
    "… the channels it needs": lambda: bus_cover(watched({"polygon": ZIGZAG})),
    "… its cells": lambda: opened(watched({"polygon": ZIGZAG})),
    "… 300 vendors tested for its snapshot": lambda: snapshot_of(ZIGZAG),
    "`watch`, 199 edges along one line": lambda: snapshot_of(SHEAF),
    "`watch`, a list of 200 vendors": lambda: decode_watch(
        orjson.dumps({"type": "watch", "id": "w", "vendors": [str(number) for number in range(200)]}), Bounds()
    ),
    "`GET …/locations`, each 500 rows as GeoJSON": lambda: history.encode_rows(history.Format.GEOJSON, "v", ROWS),
    "… as GPX": lambda: history.encode_rows(history.Format.GPX, "v", ROWS),
    "`GET …/nearby`, each 500 vendors": lambda: sorted(distance(52, 21, 52, 21 + row.timestamp % 7) for row in ROWS),
}


@pytest.mark.parametrize("name", COSTS)
def test_no_message_holds_the_loop(name: str) -> None:
    """Everyone waits while one message is handled; CPU time of the best of five, so a busy machine is no failure."""
    best = min(cpu_time(COSTS[name]) for _ in range(5))
    assert best < HOLD, f"{best * 1000:.1f} ms"


def test_the_table_is_complete() -> None:
    """The page lists what is measured here, and nothing that is not."""
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    table = page.split("## CPU time")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`|…)[^|]+?) \| [\d.]+ ms \|", table, re.MULTILINE)
    assert rows == list(COSTS)


def test_a_watch_costs_what_its_kind_of_area_should() -> None:
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


def cpu_time(work: Callable[[], object]) -> float:
    began = thread_time()
    work()
    return thread_time() - began
