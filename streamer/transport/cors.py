"""Which web pages may read the API's answers (CORS): those that may open sockets, wherever they come from.

This is for customers' and vendors' web apps on hosts of their own. It keeps nobody out: no cookie is looked at, a token
says who asks, and what is no browser reads every answer.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import hdrs, web

from streamer.transport.connection_limits import allowed_origin

API = "/v1/"
ASKS = "Authorization, Content-Type"
TELLS = "Link, Retry-After, WWW-Authenticate"
"""Headers of an answer that a page may read beside the harmless ones."""
REMEMBERED = 7200
"""Seconds for which a browser need not ask again; none remembers it much longer."""


class Cors:
    """Says on every answer under `/v1/` whose pages may read it, and answers browsers that ask beforehand."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = origins

    def join(self, app: web.Application) -> None:
        """Look after an application that has all its routes."""
        app.on_response_prepare.append(self._mark)
        for resource in app.router.resources():
            if isinstance(resource, web.Resource) and resource.canonical.startswith(API):
                resource.add_route(hdrs.METH_OPTIONS, self.preflight)

    async def preflight(self, request: web.Request) -> web.Response:
        """`OPTIONS`: what a page of another origin may send here."""
        resource = request.match_info.route.resource
        assert resource is not None
        methods = ", ".join(sorted(route.method for route in resource))
        headers = {hdrs.ALLOW: methods}
        if hdrs.ORIGIN in request.headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = methods
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ASKS
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(REMEMBERED)
        return web.Response(status=204, headers=headers)

    async def _mark(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not request.path.startswith(API):
            return
        if self._origins:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if allowed_origin(origin, request.headers.get(hdrs.HOST), self._origins):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin if self._origins else "*"
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = TELLS
