"""Static files: the JavaScript client for browsers."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

CLIENT = {
    "venta.js": "text/javascript; charset=utf-8",
    "venta.d.ts": "text/plain; charset=utf-8",
}
"""Files of the JavaScript client that are served, with their types."""


def installed_folder(name: str, *path: str) -> Path:
    """Returns a folder of the installed package, or in a checkout the folder at `path`."""
    package = Path(__file__).resolve().parents[1]
    inside = package / name
    return inside if inside.exists() else package.parent.joinpath(*path)


def client_folder() -> Path:
    """Returns the JavaScript client's folder."""
    return installed_folder("client", "clients", "js")


def serve_files(folder: Path, types: dict[str, str], headers: dict[str, str] | None = None) -> Handler:
    """Returns a handler for `{name}`: a file of the folder that is among `types`, revalidated at each request."""

    async def handle(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in types:
            raise web.HTTPNotFound
        return web.FileResponse(
            folder / name,
            headers={
                "Content-Type": types[name],
                "Cache-Control": "no-cache",
                **(headers or {}),
                "X-Content-Type-Options": "nosniff",
            },
        )

    return handle
