"""The pages: the live map at `/`, the same for other sites at `/embed`, and the vendor page at `/vendor`.

They load everything from this server, except street tiles and vendors' images. The URLs of their files depend on the
content, so browsers cache them permanently; the pages themselves are small and revalidated each time. Texts are in
`assets/strings/`, one file for each language.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable
from functools import cached_property, partial
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from streamer import __version__
from streamer.errors import Unavailable
from streamer.settings import Settings, coordinates
from streamer.transport.problem import NO_STORE, json_response
from streamer.web import basemap
from streamer.web.basemap import Basemap

FOLDER = Path(__file__).resolve().parent / "assets"
LEAFLET = ("js_lib_leaflet", "static", "js_lib_leaflet")
"""Leaflet's files, in the package django-js-lib-leaflet, which needs no Django."""
MAP, EMBED, VENDOR = "map.html", "embed", "vendor.html"
TEXT = re.compile(rb"\{\{t:([\w.-]+)\}\}")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
HOST = re.compile(r"[a-zA-Z0-9.-]+(?::[0-9]+)?|\[[0-9a-fA-F:]+\](?::[0-9]+)?")
FOREVER = "public, max-age=31536000, immutable"
PERMISSIONS = "geolocation=(self), screen-wake-lock=(self), camera=(), microphone=()"
LANGUAGES = tuple(sorted(path.stem for path in (FOLDER / "strings").glob("*.json")))


class File(NamedTuple):
    """A file and its compressed form."""

    body: bytes
    packed: bytes
    type: str


class Pages:
    """Serves the pages, their files, and the other requests of the map that are not about vendors."""

    def __init__(self, settings: Settings, clock: Callable[[], int]) -> None:
        self._settings = settings
        self._clock = clock
        self._basemap = Basemap()

    def routes(self) -> list[web.RouteDef]:
        """Returns the routes."""
        return [
            web.get("/", partial(self.page, MAP)),
            web.get("/embed", partial(self.page, EMBED)),
            web.get("/embed.js", self.embed_script),
            web.get("/manifest.webmanifest", self.manifest),
            web.get("/vendor", partial(self.page, VENDOR)),
            web.get("/favicon.ico", self.icon),
            web.get("/map/now", self.now),
            web.get(r"/map/land/{edition}/{z:\d}/{x:\d{1,2}}/{y:\d{1,2}}", self.land),
            web.get(r"/map/{edition}/{name}", self.file),
        ]

    async def page(self, name: str, request: web.Request) -> web.Response:
        """`GET /`, `/embed`, `/vendor`: the map, the map without tools for frames, the page that reports a position."""
        page = self._rendered[name, language(request)]
        headers = {
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(page.body).hexdigest()[:20]}"',
            "Content-Security-Policy": policy(self._settings.tiles_url, request.host, framed=name == EMBED),
            "Permissions-Policy": PERMISSIONS,
            # street tile servers require a referrer; no one gets more than the origin
            "Referrer-Policy": "strict-origin-when-cross-origin",
            **({} if name == EMBED else {"X-Frame-Options": "DENY"}),
        }
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        response = answer(request, page, headers)
        response.headers["Vary"] = "Accept-Encoding, Accept-Language"
        return response

    async def embed_script(self, request: web.Request) -> web.Response:
        """`GET /embed.js`: the element `<venta-map>`, for pages of any origin."""
        headers = {"Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"}
        return answer(request, self._files["embed.js"], headers)

    async def manifest(self, request: web.Request) -> web.Response:
        """`GET /manifest.webmanifest`: what makes the map installable."""
        strings = self._strings[language(request)]
        icons = [
            {"src": f"/map/{self._edition}/icon-{size}.png", "sizes": f"{size}x{size}", "type": "image/png"}
            for size in (192, 512)
        ]
        body = {
            "name": strings["title"],
            "short_name": "Venta",
            "description": strings["description"],
            "lang": language(request),
            "id": "/",
            "start_url": "/",
            "display": "standalone",
            "background_color": "#f4f2ec",
            "theme_color": "#f4f2ec",
            "icons": [*icons, {**icons[1], "purpose": "maskable"}],
        }
        return web.Response(
            body=orjson.dumps(body),
            content_type="application/manifest+json",
            headers={"Cache-Control": "no-cache", "Vary": "Accept-Language"},
        )

    async def icon(self, _: web.Request) -> web.Response:
        """`GET /favicon.ico`: for browsers that do not read the page's link."""
        raise web.HTTPMovedPermanently(f"/map/{self._edition}/icon.svg")

    async def now(self, _: web.Request) -> web.Response:
        """`GET /map/now`: the server's clock, by which a page computes the age of a position."""
        return json_response({"time": self._clock()}, headers=NO_STORE)

    async def file(self, request: web.Request) -> web.Response:
        """`GET /map/{edition}/{name}`: a file of the pages."""
        found = self._files.get(request.match_info["name"])
        if found is None or found.type == TYPES[".html"]:
            raise web.HTTPNotFound
        # a page of another edition may still be open while a new server starts
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
        """Stops building the basemap."""
        await self._basemap.close()

    @cached_property
    def _files(self) -> dict[str, File]:
        leaflet = files(LEAFLET[0]).joinpath(*LEAFLET[1:])
        return {
            item.name: load(item)
            for item in [*FOLDER.iterdir(), *map(leaflet.joinpath, ("leaflet.css", "leaflet.js"))]
            if item.is_file()
        }

    @cached_property
    def _strings(self) -> dict[str, dict[str, Any]]:
        return {code: orjson.loads((FOLDER / "strings" / f"{code}.json").read_bytes()) for code in LANGUAGES}

    @cached_property
    def _edition(self) -> str:
        digest = hashlib.sha256()
        for name, file in sorted(self._files.items()):
            digest.update(name.encode() + file.body)
        return digest.hexdigest()[:12]

    @cached_property
    def _rendered(self) -> dict[tuple[str, str], File]:
        configured = self._settings
        shared = {
            "version": __version__,
            "tilesUrl": configured.tiles_url,
            "tilesAttribution": configured.tiles_attribution,
            "landUrl": f"/map/land/{basemap.edition()}/{{z}}/{{x}}/{{y}}" if basemap.available() else None,
            "center": coordinates(configured.map_center),
            "maxRadius": configured.max_radius,
            "maxExtent": configured.max_extent,
            "maxBatch": configured.max_batch,
            "tokenNeeded": configured.watch_auth == "required",
            "alerts": configured.alert_key is not None,
            "pastIsPublic": configured.history_access == "public",
        }
        return {
            (name, code): self._render(name, code, {**shared, "embed": name == EMBED, "lang": code})
            for name in (MAP, EMBED, VENDOR)
            for code in LANGUAGES
        }

    def _render(self, name: str, code: str, shared: dict[str, Any]) -> File:
        strings = self._strings[code]
        # the map's script needs neither texts of the vendor page nor texts that are in the page already
        own = {key: text for key, text in strings.items() if key.startswith("vendor.") == (name == VENDOR)}
        if name == VENDOR:
            own |= {key: strings[key] for key in SHARED_TEXTS}
        # the data must not contain the end tag of the script element
        data = orjson.dumps({**shared, "strings": own}).replace(b"<", b"\\u003c")
        body = self._files[VENDOR if name == VENDOR else MAP].body
        body = TEXT.sub(lambda found: escape(strings[found[1].decode()]).encode(), body)
        for mark, value in (("edition", self._edition.encode()), ("lang", code.encode()), ("settings", data)):
            body = body.replace(f"{{{{{mark}}}}}".encode(), value)
        return File(body, gzip.compress(body, 6, mtime=0), TYPES[".html"])


SHARED_TEXTS = ("positions", "age.now", "age.ago", "span.s", "span.min", "span.h", "winds")
"""Texts of the modules that both pages use."""


def language(request: web.Request) -> str:
    """Returns the language of a page: that of `?lang=`, or the browser's first supported one, or English."""
    given = [request.query.get("lang", "")]
    for part in request.headers.get("Accept-Language", "").split(","):
        given.append(part.partition(";")[0])
    found = (code.strip().lower().partition("-")[0] for code in given)
    return next((code for code in found if code in LANGUAGES), "en")


def load(item: Traversable) -> File:
    """Reads and compresses a file."""
    body = item.read_bytes()
    return File(body, gzip.compress(body, 9, mtime=0), TYPES[Path(item.name).suffix])


def answer(request: web.Request, file: File, headers: dict[str, str]) -> web.Response:
    """Returns a file, compressed if the browser accepts gzip."""
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


def policy(tiles_url: str | None, host: str, *, framed: bool = False) -> str:
    """Returns the content security policy: this server's files, images by HTTPS, street tiles.

    Args:
        framed: whether other sites may put the page into a frame.
    """
    images = ["'self'", "data:", "https:"]
    if tiles_url is not None and tiles_url.startswith("http://"):
        images.append("http://" + urlsplit(tiles_url).netloc.replace("{s}", "*"))
    connections = ["'self'"]
    if HOST.fullmatch(host):
        # older browsers do not treat WebSockets of the same origin as 'self'
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
            "manifest-src 'self'",
            "frame-ancestors *" if framed else "frame-ancestors 'none'",
        ]
    )
