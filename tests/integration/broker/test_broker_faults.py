"""After any failure between processes and Redis, every customer's map is correct again."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
import redis.asyncio

from streamer.broker.redis_schema import parse_place, place_key
from streamer.geo.grid import bus_cell
from streamer.live.fix import fix_of_register
from streamer.protocol import messages
from streamer.protocol.bounds import Bounds
from tests.support.apps import circle, eventually
from tests.support.peers import Look, Peer, Position
from tests.support.proxy import Proxy

PLACES: tuple[Position, ...] = ((52.23, 21.01), (52.45, 21.30), (-17.0, 179.97), (89.93, 40.0))


class Chaos:
    """Processes, vendors and customers, and the expected views."""

    def __init__(self, seed: int, url: str, stack: AsyncExitStack) -> None:
        self.random = random.Random(seed)
        self.url = url
        self.stack = stack
        self.peers: dict[str, tuple[Peer, Proxy]] = {}
        self.positions: dict[str, Position] = {}
        self.opens: dict[str, bool] = {}
        self.at: dict[str, set[str]] = {}
        """The processes where a vendor has a socket, by vendor."""
        self.last = 0
        self.looks: list[tuple[Look, str, messages.Watch]] = []
        self.started = 0
        self.log: list[str] = []

    async def begin(self) -> str:
        """Adds a process."""
        self.started += 1
        name = f"p{self.started}"
        proxy = await self.stack.enter_async_context(
            Proxy(self.url, lag=self.random.choice((0, 0.01)), seed=self.started)
        )
        peer = Peer(proxy.url, name, grace=1.0, linger=0.5)
        self.peers[name] = (peer, proxy)
        await peer.start()
        return name

    async def kill(self, name: str) -> None:
        """Kills a process; its vendors and customers reconnect to another one."""
        peer, _ = self.peers.pop(name)
        await peer.kill()
        assert peer.supervisor.deaths == 0
        self.looks = [look for look in self.looks if look[1] != name]
        for id, names in self.at.items():
            names.discard(name)
            if not names and id in self.positions:
                self.connect(id, self.random.choice(list(self.peers)))

    def connect(self, id: str, name: str) -> None:
        """A vendor opens a socket; its old one ends then or later."""
        if name not in self.at.setdefault(id, set()):
            self.at[id].add(name)
            self.opens[id] = True
            self.peers[name][0].serve(id)

    def move(self, id: str) -> None:
        """A vendor reports its position over one of its sockets."""
        chance = self.random
        centre = chance.choice(PLACES) if chance.random() < 0.3 else self.positions.get(id, PLACES[0])
        lat = min(max(centre[0] + chance.uniform(-0.02, 0.02), -90.0), 90.0)
        long = (centre[1] + chance.uniform(-0.03, 0.03) + 180) % 360 - 180
        names = self.at.get(id)
        if not names:
            return
        peer = self.peers[chance.choice(sorted(names))][0]
        self.last = max(self.last + 1, peer.now())
        peer.ping(id, (lat, long), self.last)
        self.positions[id] = (lat, long)

    async def look(self, name: str) -> None:
        """A customer starts or moves a watch."""
        chance = self.random
        if chance.random() < 0.3:
            fields: dict[str, Any] = {"vendors": chance.sample([f"v{n}" for n in range(12)], 4)}
        else:
            fields = {"area": circle(*chance.choice(PLACES), chance.choice((2_000, 5_000, 50_000)))}
        wanted = messages.watch_of({"type": "watch", "id": "w", **fields}, Bounds())
        mine = [n for n, look in enumerate(self.looks) if look[1] == name]
        if mine and chance.random() < 0.6:
            number = chance.choice(mine)
            look = self.looks[number][0]
            self.looks[number] = (look, name, wanted)
        else:
            look = self.peers[name][0].looks()
            self.looks.append((look, name, wanted))
        await look.watch(**fields)

    def wrong(self) -> list[str]:
        """Returns the differences from the expected views."""
        faults = []
        for look, name, wanted in self.looks:
            expected = {
                id: at
                for id, at in self.positions.items()
                if (wanted.area.contains(*at) if wanted.area else id in (wanted.vendors or ()))
            }
            if look.positions != expected:
                faults.append(f"{name} {wanted}: {look.positions} is not {expected}")
            faults += [f"{name}: {card}" for card in look.view.values() if not card["online"]]
        return faults

    async def rest(self) -> None:
        """Ends all faults, and waits until all views are correct."""
        for _, proxy in self.peers.values():
            proxy.up()
            proxy.thaw()
        for peer, _ in self.peers.values():
            await peer.joined()
        async with redis.asyncio.Redis.from_url(self.url) as client:
            await eventually(lambda: self.told(client), "Redis holding each vendor once, where it is", 15)
        try:
            await eventually(lambda: not self.wrong(), "", 15)
        except AssertionError:
            raise AssertionError("\n".join([*self.log[-40:], *self.wrong()])) from None

    async def told(self, client: Any) -> bool:
        """Returns whether Redis holds each vendor once, with its newest fix."""
        found: dict[str, list[Position]] = {}
        for key in await client.keys("v2:{*}:now"):
            for field, value in (await client.hgetall(key)).items():
                if field[:1] == b"f":
                    id, fix = fix_of_register(orjson.loads(value[13:]))
                    found.setdefault(id, []).append((fix.lat, fix.long))
        places = {id: parse_place(await client.get(place_key(id))) for id in self.positions}
        return found == {id: [at] for id, at in self.positions.items()} and all(
            (spot := places[id]) is not None and spot.cell == bus_cell(*at) for id, at in self.positions.items()
        )

    async def fault(self) -> None:
        """Causes a random fault."""
        chance = self.random
        name = chance.choice(list(self.peers))
        proxy = self.peers[name][1]
        kind = chance.choice(("cut", "refuse", "strand", "stall", "flush", "cut all"))
        self.log.append(f"{kind} {name}")
        if kind == "cut":
            proxy.cut()
        elif kind == "refuse":
            proxy.down()
        elif kind == "strand":
            proxy.strand()
        elif kind == "stall":
            proxy.freeze()
        elif kind == "flush":
            async with redis.asyncio.Redis.from_url(self.url) as client:
                await client.flushall()
        else:
            for _, each in self.peers.values():
                each.cut()

    async def step(self) -> None:
        """Performs a random action."""
        chance = self.random
        name = chance.choice(list(self.peers))
        id = f"v{chance.randrange(12)}"
        roll = chance.random()
        if roll < 0.6:
            self.move(id)
        elif roll < 0.75:
            self.connect(id, name)
        elif roll < 0.85:
            names = self.at.get(id, set())
            if len(names) > 1:
                old = chance.choice(sorted(names))
                names.discard(old)
                self.peers[old][0].part(id)
        else:
            await self.look(name)
        self.log.append(f"{roll:.2f} {name} {id}")
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice((0, 0.01, 0.1)))


@pytest.mark.parametrize("seed", [1, 2])
async def test_chaos(redis_url: str, seed: int) -> None:
    """Connections closed, refused, stalled; Redis emptied; processes killed: afterwards all maps are correct."""
    async with AsyncExitStack() as stack:
        chaos = Chaos(seed, redis_url, stack)
        for _ in range(3):
            await chaos.begin()
        for id in range(12):
            chaos.connect(f"v{id}", chaos.random.choice(list(chaos.peers)))
            chaos.move(f"v{id}")
        try:
            for _ in range(3):
                for number in range(40):
                    await chaos.step()
                    if number in (10, 25):
                        await chaos.fault()
                await chaos.rest()
                if chaos.random.random() < 0.5:
                    await chaos.kill(chaos.random.choice(list(chaos.peers)))
                    await chaos.begin()
        finally:
            for peer, _ in chaos.peers.values():
                await peer.stop()
        assert all(peer.supervisor.deaths == 0 for peer, _ in chaos.peers.values())
