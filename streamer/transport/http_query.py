"""HTTP endpoints for reading: vendors by name and nearby, a vendor's card and its history."""

from __future__ import annotations

import asyncio
from heapq import nsmallest

from aiohttp import web

from streamer.accounts.permissions import owned_vendor
from streamer.accounts.tokens import Identity
from streamer.errors import ErrorCode, ProtocolError, Unavailable
from streamer.geo.shapes import Circle, distance
from streamer.live.vendor import Vendor
from streamer.protocol import fields, history, messages
from streamer.protocol.history import LocationRow
from streamer.storage.store import VendorRow
from streamer.transport.identify import COST, identify, identify_watcher
from streamer.transport.problem import NO_STORE, json_response, problem
from streamer.transport.query import decode_cursor, encode_cursor, limit_of, number, paged, words
from streamer.transport.services import Services
from streamer.transport.sse import message_of

SLICE_ROWS = 500
"""Rows of history that are read and encoded at once; more would hold the event loop for many milliseconds."""
SLICE_VENDORS = 500
"""Vendors whose distance is computed at once."""


class HttpQuery:
    """The handlers of GET requests."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._subscriptions = services.subscriptions

    async def search(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors?query&open&limit&cursor`: a page by name, whether on the map or not; without positions."""
        await self.authorize(request)
        wanted = words(request.query.get("query", ""))
        limit = limit_of(request.query)
        given = request.query.get("open", "false")
        if given not in ("true", "false"):
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"open must be true or false, not {given!r:.40}")
        cursor = request.query.get("cursor")
        after = ("", "") if cursor is None else decode_cursor(cursor)
        rows = await self._services.store.search(wanted, given == "true", limit + 1, after)
        page = rows[:limit]
        following = encode_cursor(page[-1].name, page[-1].vendor_id) if len(rows) > len(page) else None
        vendors = [
            {"vendorId": row.vendor_id, "name": row.name, "open": row.open, "primaryImage": row.primary_image}
            for row in page
        ]
        return paged(request, "vendors", vendors, following)

    async def nearby(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors/nearby?lat&long&radius&limit`: cards with `distance` in metres, the nearest first."""
        await self.authorize(request)
        query = {
            name: number(name, value)
            for name, value in request.query.items()
            if name in (*fields.COORDINATES, "radius", "limit")
        }
        lat, long = fields.position(query, wrap=True)
        radius, limit = query.get("radius", 5000.0), query.get("limit", 50.0)
        if not (1 <= limit <= 1000 and limit.is_integer()):
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"limit is a whole number, 1 to 1000, not {limit:g}")
        if not 0 <= radius <= self._settings.max_radius:
            raise ProtocolError(
                ErrorCode.AREA_TOO_LARGE if radius > 0 else ErrorCode.INVALID_AREA,
                f"radius is 0 to {self._settings.max_radius:.0f} m, not {radius}",
            )
        wanted = messages.Watch("nearby", Circle(lat, long, radius), None, False, 0)
        members, _ = await self._subscriptions.members(wanted)
        found: list[tuple[float, str, Vendor]] = []
        for start in range(0, len(members), SLICE_VENDORS):
            found += [
                (distance(lat, long, v.shown.lat, v.shown.long), v.vendor_id, v)
                for v in members[start : start + SLICE_VENDORS]
            ]
            found = nsmallest(int(limit), found)
            await asyncio.sleep(0)
        cards = [{**v.card_fields(), "distance": d} for d, _, v in found]
        return json_response({"vendors": cards}, headers=NO_STORE)

    async def counts(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors/counts?area&open&detail`: groups of vendors, as a `counts` watch has them."""
        await self.authorize(request)
        wanted = messages.watch_of({**message_of(request.query), "as": "counts"}, self._services.bounds)
        groups = await self._subscriptions.groups(wanted, request[COST].client)
        return json_response({"groups": groups}, headers=NO_STORE)

    async def card(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors/{id}`: the card of a vendor that is on the map; for its owner also while it is hidden."""
        identity = await self.authorize(request)
        vendor_id = request.match_info["id"]
        vendor, complete = await self._subscriptions.vendor(vendor_id)
        if vendor is not None:
            on_map = vendor.live and vendor.shown is vendor.fix
            exact = on_map or (vendor.known and await self._owns(identity, vendor_id))
            if exact or vendor.live:
                return json_response(vendor.card_fields(exact=exact), headers=NO_STORE)
        if not complete:
            message = f"vendor {vendor_id!r} is not on this process, and the other processes can't be reached"
            raise Unavailable(message, message)
        raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"vendor {vendor_id!r} is not on the map")

    async def history(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors/{id}/locations?from&to&limit&cursor`: a page of stored locations; JSON, GeoJSON or GPX."""
        row, exact = await self._past(request, request.match_info["id"])
        accept = ", ".join(request.headers.getall("Accept", ()))
        form = history.negotiate(accept)
        if form is None:
            offered = ", ".join(history.Format)
            message = f"history is available as {offered}; none of these is in Accept: {accept}"
            return problem(ErrorCode.INVALID_MESSAGE, message, status=406)
        tolerance = int(self._settings.future_tolerance * 1000)
        asked = history.decode_range(request.query, self._services.clock(), tolerance)
        slices: list[bytes] = []
        left, after = asked.limit, asked.after
        while True:
            size = min(left, SLICE_ROWS)
            found = await self._services.store.locations(row.vendor_id, asked.from_ms, asked.to_ms, size + 1, after)
            rows, cursor = history.cut(found, size)
            if rows:
                shown = rows if exact else [self._coarse(stored) for stored in rows]
                slices.append(history.encode_rows(form, row.vendor_id, shown))
            left -= size
            if cursor is None or not left:
                break
            after = rows[-1].timestamp, rows[-1].id
        body = history.encode(form, row.vendor_id, row.name, slices, cursor)
        headers = {"Cache-Control": "no-store", "Vary": "Accept"}
        if cursor is not None:
            headers["Link"] = f'<{request.rel_url.raw_path}?{asked.next_query(cursor)}>; rel="next"'
        return web.Response(body=body, content_type=form, headers=headers)

    async def _past(self, request: web.Request, vendor_id: str) -> tuple[VendorRow, bool]:
        """Returns the vendor whose history is read, and whether exact positions may be returned.

        Raises ProtocolError unless the request is from its owner, or history is public.
        """
        if self._settings.history_access == "owner":
            identity = await identify(request, self._services.authenticator)
            return await owned_vendor(self._services.dataloader, identity, vendor_id), True
        watcher = await self.authorize(request)
        row = await self._services.dataloader.vendor(vendor_id)
        if row is None:
            raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"there is no vendor {vendor_id!r}")
        # Stored positions do not show when the vendor was open, so all are coarse.
        coarse = self._settings.show_closed == "coarse"
        return row, not coarse or (watcher is not None and watcher.clerk_id == row.clerk_id)

    def _coarse(self, row: LocationRow) -> LocationRow:
        return LocationRow(row.id, row.timestamp, *self._subscriptions.visibility.coarse_position(row.lat, row.long))

    async def _owns(self, identity: Identity | None, vendor_id: str) -> bool:
        row = None if identity is None else await self._services.dataloader.vendor(vendor_id)
        return row is not None and identity is not None and row.clerk_id == identity.clerk_id

    async def authorize(self, request: web.Request) -> Identity | None:
        """Checks the token of a customer's request, and returns its user. Raises ProtocolError if it is rejected."""
        required = self._settings.watch_auth == "required"
        return await identify_watcher(request, self._services.authenticator, required=required)
