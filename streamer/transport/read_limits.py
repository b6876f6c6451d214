"""Limits the CPU time that a client's reads over HTTP take."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from streamer.cpu_time import measured
from streamer.transport.admission import Admission
from streamer.transport.identify import COST, await_budget

READS = ("/v1/vendors", "/v1/alerts")


def limiting_reads(admission: Admission) -> Middleware:
    """Return a middleware that charges reads to their address and user, and refuses those of heavy ones for a while."""

    @web.middleware
    async def limited(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD") or not request.path.startswith(READS):
            return await handler(request)
        cost = admission.read_cost(request)
        clock = asyncio.get_running_loop().time
        await await_budget(cost)
        request[COST] = cost  # `identify` adds the user

        async def handled() -> web.StreamResponse:
            return await handler(request)

        return await measured(handled(), lambda seconds: cost.charge(seconds, clock()))

    return limited
