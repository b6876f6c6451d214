"""Vendors that a test moves, and customers whose views must equal the vendors' positions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from streamer.geo.shapes import Area
from streamer.protocol import messages
from streamer.protocol.bounds import Bounds
from streamer.storage import seed
from tests.support.apps import CustomerApp, VendorApp, eventually, now_ms

Position = tuple[float, float]

WARSAW = (52.2297, 21.0122)
FIJI = (-17.0, 179.97)
NORTH = (89.93, 40.0)


class Truth:
    """The expected state of one vendor."""

    def __init__(self, vendor_id: str, clerk_id: str) -> None:
        self.vendor_id = vendor_id
        self.clerk_id = clerk_id
        self.position: Position | None = None
        self.timestamp = 0
        self.open = True
        self.app: VendorApp | None = None


class Wanted:
    """The expected state of one watch."""

    def __init__(self, customer: CustomerApp, id: str) -> None:
        self.customer = customer
        self.id = id
        self.area: Area | None = None
        self.listed: frozenset[str] = frozenset()
        self.open = False

    def holds(self, vendor: Truth) -> bool:
        """Returns whether the vendor belongs to this view."""
        if vendor.position is None or (self.open and not vendor.open):
            return False
        if self.area is None:
            return vendor.vendor_id in self.listed
        return self.area.contains(*vendor.position)


class World:
    """Vendors and customers on some servers; everything random comes from one seed."""

    def __init__(self, seed: int, urls: Sequence[str]) -> None:
        self.random = random.Random(seed)
        self.urls = urls
        self.vendors: list[Truth] = []
        self.watches: dict[tuple[CustomerApp, str], Wanted] = {}
        self._stack = AsyncExitStack()
        self._last = 0

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def populate(self, database_url: str, count: int) -> None:
        """Adds vendors, whose sockets are distributed over the servers."""
        seeded = await seed.seed(database_url, len(self.vendors) + count)
        new = [Truth(one.vendor_id, one.clerk_id) for one in seeded[len(self.vendors) :]]
        self.vendors += new
        for number, vendor in enumerate(new):
            await self.connect(vendor, self.urls[number % len(self.urls)])

    async def connect(self, vendor: Truth, url: str) -> None:
        """Opens a socket for a vendor."""
        vendor.app = await self._stack.enter_async_context(VendorApp(url, vendor.clerk_id))

    async def customer(self, url: str) -> CustomerApp:
        """Adds a customer."""
        return await self._stack.enter_async_context(CustomerApp(url))

    def near(self, centre: Position, reach: float) -> Position:
        """Returns a random position within `reach` degrees of a centre, also over the antimeridian and the pole."""
        lat = centre[0] + self.random.uniform(-reach, reach)
        long = centre[1] + self.random.uniform(-reach, reach) * (4 if abs(centre[0]) > 80 else 1.5)
        if lat > 90:
            lat, long = 180 - lat, long + 180
        return lat, (long + 180) % 360 - 180

    async def move(self, vendor: Truth, position: Position, timestamp: int | None = None) -> None:
        """Reports a vendor's position; every ping has a different timestamp."""
        self._last = max(self._last + 1, now_ms()) if timestamp is None else timestamp
        assert vendor.app is not None
        await vendor.app.ping(*position, timestamp=self._last)
        if self._last > vendor.timestamp:
            vendor.position, vendor.timestamp = position, self._last

    async def status(self, vendor: Truth, is_open: bool) -> None:
        """Opens or closes a vendor for business."""
        assert vendor.app is not None
        vendor.open = is_open
        await vendor.app.send({"type": "status", "open": is_open})

    async def watch(self, customer: CustomerApp, id: str, *, wait: bool = True, **fields: Any) -> Wanted:
        """Starts or moves a watch; `fields` are in wire format."""
        message = {"type": "watch", "id": id, **fields}
        decoded = messages.watch_of(message, Bounds())
        wanted = self.watches.setdefault((customer, id), Wanted(customer, id))
        wanted.area, wanted.listed, wanted.open = decoded.area, decoded.vendors or frozenset(), decoded.open
        if wait:
            await customer.watch(id, **fields)
        else:
            await customer.send(message)
        return wanted

    def wrong(self) -> list[str]:
        """Describes the errors in the customers' views."""
        faults = []
        for wanted in self.watches.values():
            assert wanted.customer.reading, f"{wanted.id}: an update did not fit the view"
            expected = {v.vendor_id: (v.position, v.timestamp, v.open) for v in self.vendors if wanted.holds(v)}
            view = wanted.customer.views.get(wanted.id)
            seen = (
                None
                if view is None
                else {id: ((card["lat"], card["long"]), card["timestamp"], card["open"]) for id, card in view.items()}
            )
            if seen is None:
                faults.append(f"{wanted.id} has no snapshot")
            elif seen != expected:
                differing = {id: (seen.get(id), expected.get(id)) for id in expected.keys() | seen.keys()}
                first = [f"{id}: {a} is {b}" for id, (a, b) in differing.items() if a != b]
                faults.append(f"{wanted.id} ({wanted.area or 'list'}): {len(first)} wrong, {first[:2]}")
        return faults

    async def agree(self, within: float = 20.0) -> None:
        """Waits until all views are correct."""
        try:
            await eventually(lambda: not self.wrong(), "views that are true", within)
        except AssertionError:
            raise AssertionError("\n".join(self.wrong())) from None


async def all_of(work: Iterable[Any]) -> None:
    """Do it at once."""
    await asyncio.gather(*work)
