"""CORS: which web pages may read the API's answers and open WebSockets.

This is for web apps on other hosts. It is no access control: no cookie is used, a token identifies the user, and
clients other than browsers can read every answer.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import hdrs, web

API = "/v1/"
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key"
EXPOSED_HEADERS = "Link, Retry-After, WWW-Authenticate"
"""Response headers that a page may read in addition to the safelisted ones."""
MAX_AGE = 7200
"""Seconds for which a browser may cache a preflight; none caches it much longer."""


class Cors:
    """Marks every answer under `/v1/` with the origins that may read it, and answers preflight requests."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = origins

    def join(self, app: web.Application) -> None:
        """Add CORS to an application that has all its routes."""
        app.on_response_prepare.append(self._mark)
        for resource in app.router.resources():
            if isinstance(resource, web.Resource) and resource.canonical.startswith(API):
                resource.add_route(hdrs.METH_OPTIONS, self.preflight)

    async def preflight(self, request: web.Request) -> web.Response:
        """`OPTIONS`: what a page of another origin may send."""
        resource = request.match_info.route.resource
        assert resource is not None
        methods = ", ".join(sorted(route.method for route in resource))
        headers = {hdrs.ALLOW: methods}
        if hdrs.ORIGIN in request.headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = methods
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = REQUEST_HEADERS
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(MAX_AGE)
        return web.Response(status=204, headers=headers)

    async def _mark(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not request.path.startswith(API):
            return
        if self._origins:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if allowed_origin(origin, request.headers.get(hdrs.HOST), self._origins):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin if self._origins else "*"
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS


def allowed_origin(origin: str | None, host: str | None, allowed: Collection[str]) -> bool:
    """Return whether a page of this origin may open connections; the server's own pages and other clients may."""
    if origin is None or not allowed or origin in allowed:
        return True
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == (host or "").lower()
    except ValueError:
        return False
