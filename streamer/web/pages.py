"""The pages: the live map at `/`, and `/vendor`, which makes a phone's browser a vendor.

All that they load comes from this server, but for street tiles and vendors' images. Their files are named by what is
in them, so a browser keeps them for good; the pages themselves are asked for anew, and small.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from streamer import __version__
from streamer.errors import Unavailable
from streamer.settings import Settings, coordinates
from streamer.transport.problem import json_response
from streamer.web import basemap
from streamer.web.basemap import Basemap

FOLDER = Path(__file__).resolve().parent / "assets"
LEAFLET = ("js_lib_leaflet", "static", "js_lib_leaflet")
"""Leaflet's files, in the package django-js-lib-leaflet; nothing of Django is needed for them."""
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HOST = re.compile(r"[a-zA-Z0-9.-]+(?::[0-9]+)?|\[[0-9a-fA-F:]+\](?::[0-9]+)?")
FOREVER = "public, max-age=31536000, immutable"
PERMISSIONS = "geolocation=(self), screen-wake-lock=(self), camera=(), microphone=()"


class File(NamedTuple):
    """A file as it is sent."""

    body: bytes
    packed: bytes
    type: str


class Pages:
    """The handlers of the pages, of their files, and of what the map asks for beside vendors."""

    def __init__(self, settings: Settings, clock: Callable[[], int], land: Basemap | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._basemap = Basemap() if land is None else land

    def routes(self) -> list[web.RouteDef]:
        """Where everything is."""
        return [
            web.get("/", self.map),
            web.get("/vendor", self.vendor),
            web.get("/favicon.ico", self.icon),
            web.get("/map/now", self.now),
            web.get(r"/map/land/{edition}/{z:\d}/{x:\d{1,2}}/{y:\d{1,2}}", self.land),
            web.get(r"/map/{edition}/{name}", self.file),
        ]

    async def map(self, request: web.Request) -> web.Response:
        """`GET /`: the live map."""
        return self._page(request, "map.html")

    async def vendor(self, request: web.Request) -> web.Response:
        """`GET /vendor`: the page that reports where its device is."""
        return self._page(request, "vendor.html")

    async def icon(self, _: web.Request) -> web.Response:
        """`GET /favicon.ico`: where browsers look that do not read the page."""
        raise web.HTTPMovedPermanently(f"/map/{self._edition}/icon.svg")

    async def now(self, _: web.Request) -> web.Response:
        """`GET /map/now`: the server's clock, from which a page tells how old a position is."""
        return json_response({"time": self._clock()}, headers={"Cache-Control": "no-store"})

    async def file(self, request: web.Request) -> web.Response:
        """`GET /map/{edition}/{name}`: a file of the pages."""
        found = self._files.get(request.match_info["name"])
        if found is None or found.type == TYPES[".html"]:
            raise web.HTTPNotFound
        # a page of another edition may still be open while a new server takes over
        current = request.match_info["edition"] == self._edition
        return answer(request, found, {"Cache-Control": FOREVER if current else "no-store"})

    async def land(self, request: web.Request) -> web.Response:
        """`GET /map/land/{edition}/{z}/{x}/{y}`: a tile of the basemap; 204 where it is all sea."""
        if not basemap.available():
            raise web.HTTPNotFound
        z, x, y = (int(request.match_info[part]) for part in "zxy")
        try:
            tile = await self._basemap.tile((z, x, y))
        except Unavailable as failed:
            return web.Response(status=503, text=str(failed), headers={"Cache-Control": "no-store", "Retry-After": "5"})
        if tile is None:
            return web.Response(status=204, headers={"Cache-Control": FOREVER})
        found = File(tile, tile, "application/json")
        return answer(request, found, {"Cache-Control": FOREVER})

    async def close(self) -> None:
        """End what is under way."""
        await self._basemap.close()

    def _page(self, request: web.Request, name: str) -> web.Response:
        page = self._rendered[name]
        headers = {
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(page.body).hexdigest()[:20]}"',
            "Content-Security-Policy": policy(self._settings.tiles_url, request.host),
            "Permissions-Policy": PERMISSIONS,
            # street tile servers want to know from where; nobody gets more than the origin
            "Referrer-Policy": "strict-origin-when-cross-origin",
            "X-Frame-Options": "DENY",
        }
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return answer(request, page, headers)

    @cached_property
    def _files(self) -> dict[str, File]:
        leaflet = files(LEAFLET[0]).joinpath(*LEAFLET[1:])
        return {
            item.name: load(item) for item in [*FOLDER.iterdir(), *map(leaflet.joinpath, ("leaflet.css", "leaflet.js"))]
        }

    @cached_property
    def _edition(self) -> str:
        digest = hashlib.sha256()
        for name, file in sorted(self._files.items()):
            digest.update(name.encode() + file.body)
        return digest.hexdigest()[:12]

    @cached_property
    def _rendered(self) -> dict[str, File]:
        configured = self._settings
        told = {
            "version": __version__,
            "tilesUrl": configured.tiles_url,
            "tilesAttribution": configured.tiles_attribution,
            "landUrl": f"/map/land/{basemap.edition()}/{{z}}/{{x}}/{{y}}" if basemap.available() else None,
            "center": coordinates(configured.map_center),
            "maxRadius": configured.max_radius,
            "maxExtent": configured.max_extent,
            "maxBatch": configured.max_batch,
            "tokenNeeded": configured.watch_auth == "required",
            "pastIsPublic": configured.history_access == "public",
        }
        # in a script element nothing may look like its end
        data = orjson.dumps(told).replace(b"<", b"\\u003c")
        rendered = {}
        for name in ("map.html", "vendor.html"):
            body = self._files[name].body.replace(b"{{edition}}", self._edition.encode()).replace(b"{{settings}}", data)
            rendered[name] = File(body, gzip.compress(body, 6, mtime=0), TYPES[".html"])
        return rendered


def load(item: Traversable) -> File:
    """A file, read."""
    body = item.read_bytes()
    return File(body, gzip.compress(body, 9, mtime=0), TYPES[Path(item.name).suffix])


def answer(request: web.Request, file: File, headers: dict[str, str]) -> web.Response:
    """A file, packed when the browser takes it so."""
    packed = file.body is file.packed or "gzip" in request.headers.get("Accept-Encoding", "")
    extra = {"Content-Encoding": "gzip"} if packed else {}
    return web.Response(
        body=file.packed if packed else file.body,
        headers={
            "Content-Type": file.type,
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            **extra,
            **headers,
        },
    )


def policy(tiles_url: str | None, host: str) -> str:
    """What the pages may load: this server's files, images by HTTPS from anywhere, street tiles from where they are."""
    images = ["'self'", "data:", "https:"]
    if tiles_url is not None and tiles_url.startswith("http://"):
        images.append("http://" + urlsplit(tiles_url).netloc.replace("{s}", "*"))
    connections = ["'self'"]
    if HOST.fullmatch(host):
        # older browsers do not count WebSockets of the same origin as 'self'
        connections += [f"ws://{host}", f"wss://{host}"]
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            f"img-src {' '.join(images)}",
            f"connect-src {' '.join(connections)}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
