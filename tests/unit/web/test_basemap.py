"""The map's ground: every country on it, in its place; made once, kept, made again when it can't be kept."""

from __future__ import annotations

import asyncio
import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from streamer.errors import Unavailable
from streamer.web import basemap
from streamer.web.basemap import EXTENT, LEVELS, Basemap, Country, Tile, project

pytestmark = pytest.mark.skipif(not basemap.available(), reason="needs the packages of the extra `map`")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All tiles, as they are handed out; what an earlier run has kept is taken."""
    tiles = asyncio.run(Basemap()._make())
    return {name: orjson.loads(gzip.decompress(body)) for name, body in tiles.items()}


@pytest.fixture(scope="module")
def countries() -> list[Country]:
    """All countries, as the package has them."""
    return basemap.countries()


def points(ring: list[int]) -> list[tuple[int, int]]:
    """A ring's points, in tile units."""
    found = [(ring[0], ring[1])]
    for dx, dy in zip(ring[2::2], ring[3::2], strict=True):
        found.append((found[-1][0] + dx, found[-1][1] + dy))
    return found


def owners(tile: Any, x: float, y: float) -> set[int]:
    """Whose land a place of a tile is, by even-odd rule, as the page fills it."""
    found = set()
    for number, *rings in tile["land"]:
        inside = False
        for ring in rings:
            corners = points(ring)
            for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
                if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
                    inside = not inside
        if inside:
            found.add(number)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_every_country_is_drawn(made: dict[str, Any], countries: list[Country], level: int) -> None:
    """A country that falls out of the making is a hole in the map, for those who live there."""
    drawn = {number for name, tile in made.items() if name.startswith(f"{level}/") for number, *_ in tile["land"]}
    assert [country.name for country in countries if country.number not in drawn] == []
    assert len(countries) > 240


@pytest.mark.parametrize("level", [3, 6])
def test_every_country_is_where_it_is(made: dict[str, Any], countries: list[Country], level: int) -> None:
    """A place well inside a country is that country's and nobody else's, on each level that shows it large enough."""
    wrong = []
    for country in countries:
        largest = (
            max(country.shape.geoms, key=lambda part: part.area) if hasattr(country.shape, "geoms") else country.shape
        )
        inside = largest.representative_point()
        if abs(inside.y) > 84 or largest.boundary.distance(inside) < 0.05:
            continue
        x, y = project(inside.x, inside.y, level)
        tile = made[basemap.name((level, int(x), int(y)))]
        found = owners(tile, (x % 1) * EXTENT, (y % 1) * EXTENT)
        if found != {country.number}:
            wrong.append((country.name, found))
    assert wrong == []


def test_hungary_and_the_sea(made: dict[str, Any], countries: list[Country]) -> None:
    """Proof that the check above can fail: a point in Hungary is land, one in the sea is not."""

    def at(lat: float, long: float) -> set[str]:
        x, y = project(long, lat, 6)
        tile = made.get(basemap.name((6, int(x), int(y))), {"land": []})
        return {countries[number].name for number in owners(tile, (x % 1) * EXTENT, (y % 1) * EXTENT)}

    assert at(47.16, 19.5) == {"Hungary"}
    assert at(52.23, 21.01) == {"Poland"}
    assert at(-17.8, 178.0) == {"Fiji"}
    assert at(0.0, -30.0) == set()
    assert at(43.0, 16.0) == set()  # the Adriatic


def test_names_are_on_their_tiles(made: dict[str, Any]) -> None:
    """A name is looked for in the tile that it lies in; the levels hand over where they change."""
    x, y = (int(part) for part in project(21.01, 52.23, 6))
    names = {name: (kind, zoom) for kind, name, _, _, zoom in made[basemap.name((6, x, y))]["places"]}
    assert names["Warsaw"][0] == basemap.CAPITAL
    assert names["Mokotów"][1] > names["Kraków"][1] > names["Warsaw"][1]
    for name, tile in made.items():
        level, x, y = map(int, name.split("/"))
        for _, title, long, lat, zoom in tile["places"]:
            assert tuple(map(int, project(long, lat, level))) == (x, y), title
            assert zoom <= 3 or level > 0


def test_it_is_small_enough(made: dict[str, Any]) -> None:
    """Who opens the map on a phone waits for a handful of tiles."""
    sizes = {name: len(gzip.compress(orjson.dumps(tile))) for name, tile in made.items()}
    assert max(sizes.values()) < 100_000
    assert sum(sizes.values()) < 4_000_000


def pretended(path: Path, tiles: dict[Tile, bytes]) -> None:
    """A file of tiles."""
    with zipfile.ZipFile(path, "w") as packed:
        for tile, body in tiles.items():
            packed.writestr(basemap.name(tile), body)


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A making that is quick, and counted."""
    made: list[Path] = []

    async def quickly(path: Path) -> None:
        made.append(path)
        await asyncio.sleep(0.01)
        pretended(path, {(0, 0, 0): b"tile"})

    monkeypatch.setattr(basemap, "make_in_subprocess", quickly)
    return made


async def test_built_once_for_concurrent_callers(making: list[Path], tmp_path: Path) -> None:
    """A hundred browsers at the start, and the next server too, share one build."""
    for _ in range(2):
        ground = Basemap(tmp_path / "kept")
        assert set(await asyncio.gather(*(ground.tile((0, 0, 0)) for _ in range(100)))) == {b"tile"}
        assert await ground.tile((6, 0, 0)) is None
        await ground.close()
    assert len(making) == 1
    assert not making[0].exists()


@pytest.mark.parametrize("spoil", [lambda kept: kept.write_bytes(b"cut off"), lambda kept: kept.unlink()])
async def test_a_corrupt_file_is_built_again(
    making: list[Path], tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    """A file that a full disk cut off must not stay the map."""
    await Basemap(tmp_path).tile((0, 0, 0))
    spoil(tmp_path / f"basemap-{basemap.edition()}.zip")
    assert await Basemap(tmp_path).tile((0, 0, 0)) == b"tile"
    assert len(making) == 2
    assert await Basemap(tmp_path).tile((0, 0, 0)) == b"tile"
    assert len(making) == 2


async def test_where_nothing_can_be_kept(making: list[Path], tmp_path: Path) -> None:
    """A read-only container has its map all the same."""
    (tmp_path / "file").write_text("no folder")
    assert await Basemap(tmp_path / "file").tile((0, 0, 0)) == b"tile"


async def test_a_failed_build_reports_its_cause(
    making: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the cause, and the next request tries again."""
    quickly = basemap.make_in_subprocess
    monkeypatch.undo()
    (tmp_path / "shapefile.py").write_text("raise OSError('no countries today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ground = Basemap(tmp_path / "kept")
    with pytest.raises(Unavailable, match="no countries today"):
        await ground.tile((0, 0, 0))
    monkeypatch.setattr(basemap, "make_in_subprocess", quickly)
    assert await ground.tile((0, 0, 0)) == b"tile"
