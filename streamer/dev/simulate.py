"""Simulated vendors for `streamer dev`: WebSocket clients that drive, turn and park around a centre."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import aiohttp
import orjson

from streamer.accounts.tokens import make_token
from streamer.geo.shapes import EARTH_RADIUS
from streamer.storage.seed import SeededVendor

CENTRE = (52.2297, 21.0122)
SPREAD = 6000.0
"""Metres from the centre at which vendors turn back."""
PING_INTERVAL = 2.0
OPEN_SHARE = 0.8


class SimulatedVendor:
    """The movement of one simulated vendor, in degrees, metres and seconds."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.lat, self.long = step(*CENTRE, self._random.uniform(0, 360), SPREAD * math.sqrt(self._random.random()))
        self.heading = self._random.uniform(0, 360)
        self.speed = 0.0
        self.open = self._random.random() < OPEN_SHARE
        self._left = 0.0

    def advance(self, seconds: float) -> None:
        """Moves the vendor: it parks or drives, turns, and turns back when too far from the centre."""
        self._left -= seconds
        if self._left <= 0:
            self._left = self._random.uniform(10, 60)
            self.speed = self._random.choice((0.0, 1.3, self._random.uniform(4, 14)))
            self.heading = (self.heading + self._random.choice((-90, 0, 90)) + self._random.uniform(-10, 10)) % 360
            if math.hypot(self.lat - CENTRE[0], (self.long - CENTRE[1]) * 0.6) * 111_000 > SPREAD:
                self.heading = math.degrees(math.atan2((CENTRE[1] - self.long) * 0.6, CENTRE[0] - self.lat)) % 360
        self.lat, self.long = step(self.lat, self.long, self.heading, self.speed * seconds)


def step(lat: float, long: float, heading: float, metres: float) -> tuple[float, float]:
    """Returns the position at this distance in metres; flat-earth, good enough for a town."""
    turned = math.radians(heading)
    north = math.degrees(metres * math.cos(turned) / EARTH_RADIUS)
    east = math.degrees(metres * math.sin(turned) / (EARTH_RADIUS * math.cos(math.radians(lat))))
    return lat + north, long + east


async def simulate(url: str, vendors: Sequence[SeededVendor], secret: str, claims: Mapping[str, str]) -> None:
    """Lets vendors send pings to a server until cancelled; `claims` are what the server requires of tokens."""
    connector = aiohttp.TCPConnector(limit=0)  # one connection per vendor; the default limit is 100
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as apps:
        for number, vendor in enumerate(vendors):
            sign = partial(make_token, secret, vendor.clerk_id, 3600, claims=claims)
            apps.create_task(_app(session, url, vendor, sign, SimulatedVendor(number)))


async def _app(
    session: aiohttp.ClientSession, url: str, vendor: SeededVendor, sign: Callable[[], str], moving: SimulatedVendor
) -> None:
    while True:
        await asyncio.sleep(random.uniform(0, PING_INTERVAL))
        headers = {"Authorization": f"Bearer {sign()}"}
        with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
            async with session.ws_connect(
                f"{url}/v1/vendor", params={"vendorId": vendor.vendor_id}, headers=headers
            ) as socket:
                reader = asyncio.create_task(_read(socket))
                try:
                    await socket.send_bytes(orjson.dumps({"type": "status", "open": moving.open}))
                    while not reader.done():
                        ping = {
                            "type": "ping",
                            "lat": round(moving.lat, 6),
                            "long": round(moving.long, 6),
                            "heading": round(moving.heading, 1),
                            "speed": round(moving.speed, 1),
                        }
                        await socket.send_bytes(orjson.dumps(ping))
                        await asyncio.wait({reader}, timeout=PING_INTERVAL)
                        moving.advance(PING_INTERVAL)
                finally:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)


async def _read(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass  # acks: a simulated ping may be lost
