"""Redis between the processes: publish what this one's vendors do, hear of the others', keep where everyone is now.

Everything of a bus cell shares a hash tag, so the same code runs on one Redis and on a Redis Cluster (sharded pub/sub):

    v1:{812.403}:now     hash: f/c/p/h + vendorId -> version (13 digits) + JSON: fix, card, presence, last HTTP ping
    v1:{812.403}         channel: [origin, fixes, cards, presences, https, gone], one message per cell and flush
    v1:at:{vendorId}     the bus cell in which a vendor was last written
    v1:owner:{process}   a process's last sign of life, epoch ms
    v1:{roam}            channel: signs of life, and the state of vendors that changed cell or process

Versions make writes commute: an older fix never replaces a newer one, whichever process is late. A subscription is a
supervised connection with a probe of its own; after a gap its cells are read again and their watchers get snapshots.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import orjson
import structlog
from redis.asyncio import Connection, Redis, RedisCluster
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from streamer.errors import Unavailable
from streamer.fleet import Fleet, Part
from streamer.geo import BUS_LEVEL, cell_name, named_cell, parent
from streamer.live import Card, LiveIndex, Presence, Vendor
from streamer.supervisor import end

log = structlog.get_logger()

CELL_TTL = 2 * 3600
OWNER_TTL = 1200
AT_TTL = 24 * 3600
REFRESH = 3600.0
"""Seconds between two full rewrites of this process's vendors; below every TTL of what they keep alive."""
ALIVE = 2.0
"""Seconds between two signs of life of a process."""
PROBE = 0.5
DEAD = 2.5
"""A subscription silent for so long, probes included, is cut and made anew; below 3 s by contract."""
LINGER = 30.0
"""Seconds for which a cell nobody watches any more is still heard: a customer pans back."""
CHUNK = 400
"""Vendors in one EVAL: Lua's stack bounds how many arguments it can unpack."""
ROAM = b"v1:{roam}"

WRITE = """
redis.call('EXPIRE', KEYS[1], ARGV[1])
local fields = {}
for i = 2, #ARGV, 2 do fields[#fields + 1] = ARGV[i] end
local held = redis.call('HMGET', KEYS[1], unpack(fields))
local newer = {}
for i = 1, #fields do
  local value = ARGV[i * 2 + 1]
  if not held[i] or held[i]:sub(1, 13) <= value:sub(1, 13) then
    newer[#newer + 1] = fields[i]
    newer[#newer + 1] = value
  end
end
if #newer > 0 then
  redis.call('HSET', KEYS[1], unpack(newer))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return #newer / 2
"""

DROP = """
local gone = 0
for i = 1, #ARGV, 2 do
  local fix = redis.call('HGET', KEYS[1], 'f' .. ARGV[i])
  if not fix or fix:sub(1, 13) <= ARGV[i + 1] then
    gone = gone + redis.call('HDEL', KEYS[1], 'f' .. ARGV[i], 'c' .. ARGV[i], 'p' .. ARGV[i], 'h' .. ARGV[i])
  end
end
return gone
"""


def channel(cell: int) -> bytes:
    """The channel of a bus cell."""
    return b"v1:{%s}" % cell_name(cell).encode()


def positions_key(cell: int) -> bytes:
    """The hash of a bus cell's current states."""
    return channel(cell) + b":now"


def at_key(vendor_id: str) -> str:
    """The key that says in which bus cell a vendor was last written."""
    return f"v1:at:{vendor_id}"


def owner_key(owner: str) -> str:
    """The key of a process's last sign of life."""
    return f"v1:owner:{owner}"


class CellBatch:
    """What one flush says in one cell: the message and the fields of the hash, each register encoded once for both."""

    def __init__(self) -> None:
        self.fixes: list[bytes] = []
        self.cards: list[bytes] = []
        self.presences: list[bytes] = []
        self.https: list[bytes] = []
        self.gone: list[str] = []
        self.fields: list[bytes] = []

    def add(self, vendor: Vendor, parts: int, *, store: bool = True) -> None:
        """Say the given parts of a vendor's state; with `store` they are this cell's to keep."""
        id = vendor.vendor_id
        if parts & Part.FIX:
            fix = (id, vendor.timestamp, vendor.lat, vendor.long, vendor.heading, vendor.speed)
            self._say(self.fixes, b"f", vendor.timestamp, fix, store)
        if parts & Part.CARD:
            self._say(self.cards, b"c", vendor.card.version, (id, *vendor.card), store)
        if parts & Part.PRESENCE and vendor.presence.owner:
            self._say(self.presences, b"p", vendor.presence.since, (id, *vendor.presence), store)
        if parts & Part.HTTP and vendor.http:
            self._say(self.https, b"h", vendor.http, (id, vendor.http), store)

    def _say(self, said: list[bytes], register: bytes, version: int, value: tuple[Any, ...], store: bool) -> None:
        encoded = orjson.dumps(value)
        said.append(encoded)
        if store:
            self.fields += (register + value[0].encode(), b"%013d%b" % (version, encoded))

    def message(self, origin: str) -> bytes:
        """The batch as it is published."""
        lists = [b"[%b]" % b",".join(said) for said in (self.fixes, self.cards, self.presences, self.https)]
        return b"[%b,%b,%b]" % (orjson.dumps(origin), b",".join(lists), orjson.dumps(self.gone))


class Subscription:
    """One node's subscriptions: a connection that is probed, restored, and tells of gaps.

    `heard(channel, data)` gets each message; `up(channels)` is called once channels are subscribed, after every gap
    again; `down(cause)` when the connection is lost.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        heard: Callable[[bytes, bytes], None],
        up: Callable[[frozenset[bytes]], None],
        down: Callable[[str], None],
    ) -> None:
        self.wanted: set[bytes] = set()
        self.connected = False
        self._make = connect
        self._heard = heard
        self._up = up
        self._down = down
        self._connection: Connection | None = None
        self._active: set[bytes] = set()
        self._last = 0.0
        self._wake = asyncio.Event()

    def want(self, channels: Iterable[bytes]) -> None:
        """Have these channels heard as well."""
        self.wanted.update(channels)
        self._wake.set()

    def drop(self, channels: Iterable[bytes]) -> None:
        """Hear these channels no more."""
        self.wanted.difference_update(channels)
        self._wake.set()

    async def run(self) -> None:
        """Stay connected for ever."""
        delay = 0.05
        while True:
            cause = "closed"
            try:
                await self._session()
            except (RedisError, OSError, TimeoutError) as lost:
                cause = f"{type(lost).__name__}: {lost}"
            finally:
                was, self.connected = self.connected, False
                self._active.clear()
                if self._connection is not None:
                    with suppress(RedisError, OSError, TimeoutError):
                        await asyncio.wait_for(self._connection.disconnect(nowait=True), 1)
                    self._connection = None
            delay = 0.05 if was else min(delay * 2, 1.0)
            self._down(cause)
            await asyncio.sleep(delay * random.uniform(0.5, 1))

    async def _session(self) -> None:
        loop = asyncio.get_running_loop()
        connection = self._connection = self._make()
        async with asyncio.timeout(DEAD):
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        self._last = loop.time()
        reader = asyncio.create_task(self._read(connection), name="bus-read")
        try:
            while True:
                missing, extra = self.wanted - self._active, self._active - self.wanted
                async with asyncio.timeout(DEAD):
                    if missing:
                        await connection.send_command("SSUBSCRIBE", *missing)
                        self._active |= missing
                    if extra:
                        await connection.send_command("SUNSUBSCRIBE", *extra)
                        self._active -= extra
                    await connection.send_command("PING")
                self._wake.clear()
                waker = asyncio.create_task(self._wake.wait())
                try:
                    await asyncio.wait({reader, waker}, timeout=PROBE, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waker.cancel()
                if reader.done():
                    reader.result()
                    raise ConnectionError("the subscription ended")
                if loop.time() - self._last > DEAD:
                    raise TimeoutError(f"nothing heard for {DEAD} s")
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, RedisError, OSError, TimeoutError):
                await reader

    async def _read(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reply = await connection.read_response(timeout=float("inf"))
            self._last = loop.time()
            if not self.connected:
                self.connected = True
            if not isinstance(reply, list):
                continue
            kind = reply[0]
            if kind == b"smessage":
                self._heard(reply[1], reply[2])
            elif kind == b"ssubscribe":
                self._up(frozenset((reply[1],)))
            elif kind == b"sunsubscribe" and reply[1] in self.wanted:
                raise ConnectionError(f"the server moved channel {reply[1]!r} away")


class Listened:
    """A bus cell that this process hears."""

    __slots__ = ("idle_since", "loaded", "ready", "refs")

    def __init__(self) -> None:
        self.refs = 0
        self.loaded = False
        self.ready = asyncio.Event()
        self.idle_since: float | None = None


class Bus:
    """This process's side of Redis. `changed()` is called when the index changed, `gap(cells)` after one was missed."""

    def __init__(
        self,
        url: str,
        index: LiveIndex,
        clock: Callable[[], int],
        *,
        changed: Callable[[], None],
        gap: Callable[[frozenset[int]], None],
        timeout: float = 2.0,
        flush_gap: float = 0.15,
    ) -> None:
        self.url = url
        self.index = index
        self.fleet = Fleet(index, self.mark, changed)
        self.up = False
        """Whether the last exchange with Redis went well."""
        self.gaps = 0
        self.cause: str | None = "not connected yet"
        self._clock = clock
        self._changed = changed
        self._gap = gap
        self._timeout = timeout
        self._flush_gap = flush_gap
        self._mine = orjson.dumps([index.me])[:-1]
        self._dirty: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._posted: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._cells: dict[int, Listened] = {}
        self._named: dict[bytes, int] = {}
        self._to_load: set[int] = set()
        self._load_wake = asyncio.Event()
        self._listed: dict[str, int] = {}
        self._followed: dict[str, int] = {}
        self._to_follow: set[str] = set()
        self._links: dict[tuple[str, int], Subscription] = {}
        self._link_tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._roaming = False
        self._client: Redis | RedisCluster
        split = urlsplit(url)
        self.cluster = split.scheme in ("redis+cluster", "rediss+cluster")
        plain = urlunsplit((split.scheme.removesuffix("+cluster"), *split[1:]))
        options: dict[str, Any] = {
            "protocol": 2,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
        }
        self._options = {**parse_url(plain), **options}
        if self.cluster:
            self._client = RedisCluster.from_url(plain, **options, cluster_error_retry_attempts=1)
        else:
            self._client = Redis.from_url(plain, **options, retry=None)

    # what the process's vendors do

    def mark(self, vendor_id: str, parts: int) -> None:
        """A part of a vendor's state changed: it is written with the next flush."""
        self._dirty[vendor_id] = self._dirty.get(vendor_id, 0) | parts
        self._wake.set()

    def mark_gone(self, vendor_id: str) -> None:
        """A vendor was deleted: take it off every process's map."""
        self._dirty.pop(vendor_id, None)
        self._gone[vendor_id] = self._clock()
        self._wake.set()

    def departed(self, vendor_ids: Iterable[str]) -> None:
        """Vendors left the map by time; their entries in Redis are not needed any more."""
        for vendor_id in vendor_ids:
            if self.fleet.departed(vendor_id) and vendor_id in self._posted:
                self._gone.setdefault(vendor_id, 0)
                self._wake.set()

    # what its watchers need

    async def acquire(self, cells: Iterable[int], timeout: float = 2.0) -> bool:
        """Hear these cells and hold their vendors; False when that is not so in time, and a snapshot follows later."""
        pending = []
        for at in cells:
            listened = self._cells.get(at)
            if listened is None:
                listened = self._cells[at] = Listened()
                self._named[channel(at)] = at
                self._subscribe(at)
            listened.refs += 1
            listened.idle_since = None
            if not listened.loaded:
                pending.append(listened)
        if not pending:
            return True
        if not self.up or timeout <= 0:
            return False
        try:
            async with asyncio.timeout(timeout):
                for listened in pending:
                    await listened.ready.wait()
        except TimeoutError:
            return False
        return True

    def release(self, cells: Iterable[int]) -> None:
        """A watch needs these cells no more; they are heard a while longer."""
        now = asyncio.get_running_loop().time()
        for at in cells:
            listened = self._cells[at]
            listened.refs -= 1
            if listened.refs == 0:
                listened.idle_since = now

    async def follow(self, vendor_ids: Iterable[str], timeout: float = 2.0) -> bool:
        """Hear of these vendors wherever they are."""
        ids = list(vendor_ids)
        for id in ids:
            self._listed[id] = self._listed.get(id, 0) + 1
        if not self.up:
            self._to_follow.update(ids)
            return False
        try:
            async with asyncio.timeout(timeout):
                return await self._find([id for id in ids if id not in self._followed])
        except (RedisError, OSError, TimeoutError):
            self._to_follow.update(ids)
            return False

    def unfollow(self, vendor_ids: Iterable[str]) -> None:
        """A watch needs these vendors no more."""
        for id in vendor_ids:
            count = self._listed[id] - 1
            if count:
                self._listed[id] = count
                continue
            del self._listed[id]
            self._to_follow.discard(id)
            at = self._followed.pop(id, None)
            if at is not None:
                self.release((at,))

    @property
    def cells(self) -> frozenset[int]:
        """The bus cells that this process hears."""
        return frozenset(self._cells)

    # its tasks, to be supervised by the owner

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The loops that keep the bus going, by name."""
        return {
            "bus-flush": self._flush_loop,
            "bus-load": self._load_loop,
            "bus-alive": self._alive_loop,
            "bus-links": self._links_loop,
        }

    async def close(self) -> None:
        """Say what is left to say, and let go of all connections."""
        if self.up and (self._dirty or self._gone):
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._flush()
        await end(self._link_tasks.values())
        with suppress(RedisError, OSError, TimeoutError):
            await asyncio.wait_for(self._client.aclose(), self._timeout)

    async def probe(self) -> None:
        """Unavailable unless Redis answers."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._execute("GET", owner_key(self.index.me))
        except (RedisError, OSError, TimeoutError) as lost:
            raise Unavailable(f"Redis does not answer: {type(lost).__name__}: {lost}") from lost

    # writing

    async def _flush_loop(self) -> None:
        loop = asyncio.get_running_loop()
        delay = 0.1
        while True:
            await self._wake.wait()
            self._wake.clear()
            started = loop.time()
            count = len(self._dirty)
            dirty, gone = self._dirty, self._gone
            try:
                async with asyncio.timeout(self._timeout * 2):
                    await self._flush()
            except (RedisError, OSError, TimeoutError) as lost:
                for vendor_id, parts in dirty.items():
                    self.mark(vendor_id, parts)
                for vendor_id, at in gone.items():
                    self._gone.setdefault(vendor_id, at)
                self._wake.set()
                self._lost(f"{type(lost).__name__}: {lost}")
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, 1.0)
                continue
            delay = 0.1
            self._found()
            rest = min(self._flush_gap, count * 0.005) - (loop.time() - started)
            if rest > 0:
                await asyncio.sleep(rest)

    async def _flush(self) -> None:
        """Write and publish what changed: one script and one message per cell."""
        dirty, self._dirty = self._dirty, {}
        gone, self._gone = self._gone, {}
        vendors = self.index.vendors
        lost = [id for id, parts in dirty.items() if parts & Part.CLAIM and self._fixless(id)]
        if lost:
            await self._adopt(lost)
        batches: dict[int, CellBatch] = {}
        drops: dict[int, list[Any]] = {}
        roam = CellBatch()
        claims: list[tuple[Vendor, int, int | None]] = []
        for vendor_id, parts in dirty.items():
            vendor = vendors.get(vendor_id)
            if vendor is None or vendor.timestamp < 0 or vendor.card.version < 0:
                continue
            at = parent(vendor.cell, BUS_LEVEL)
            posted = self._posted.get(vendor_id)
            if posted != at or parts & Part.CLAIM:
                parts = Part.ALL
                claims.append((vendor, at, posted))
            (batches.get(at) or batches.setdefault(at, CellBatch())).add(vendor, parts)
            if parts & Part.PRESENCE:
                roam.add(vendor, Part.ALL, store=False)
        if claims:
            names = [("SET", at_key(v.vendor_id), cell_name(at), "EX", AT_TTL, "GET") for v, at, _ in claims]
            before = await self._pipeline(names)
            for (vendor, at, posted), name in zip(claims, before, strict=True):
                self._posted[vendor.vendor_id] = at
                for old in {posted, cell_of(name)} - {None, at}:
                    old = cast(int, old)
                    (batches.get(old) or batches.setdefault(old, CellBatch())).add(vendor, Part.ALL, store=False)
                    drops.setdefault(old, []).extend((vendor.vendor_id, b"%013d" % vendor.timestamp))
        commands: list[tuple[Any, ...]] = []
        for vendor_id, at_ms in gone.items():
            spot = self._posted.pop(vendor_id, None)
            if at_ms:
                roam.gone.append(vendor_id)
            if spot is not None:
                drops.setdefault(spot, []).extend((vendor_id, b"9" * 13))
                commands.append(("DEL", at_key(vendor_id)))
                if at_ms:
                    (batches.get(spot) or batches.setdefault(spot, CellBatch())).gone.append(vendor_id)
        for at, batch in batches.items():
            for start in range(0, len(batch.fields), CHUNK * 2):
                fields = batch.fields[start : start + CHUNK * 2]
                commands.append(("EVAL", WRITE, 1, positions_key(at), CELL_TTL, *fields))
        for at, pairs in drops.items():
            for start in range(0, len(pairs), CHUNK * 2):
                commands.append(("EVAL", DROP, 1, positions_key(at), *pairs[start : start + CHUNK * 2]))
        # Stored before it is published: who subscribes and then reads misses nothing.
        commands += [("SPUBLISH", channel(at), batch.message(self.index.me)) for at, batch in batches.items()]
        if roam.presences or roam.gone:
            commands.append(("SPUBLISH", ROAM, roam.message(self.index.me)))
        if commands:
            await self._pipeline(commands)

    def _fixless(self, vendor_id: str) -> bool:
        vendor = self.index.vendors.get(vendor_id)
        return vendor is not None and vendor.timestamp < 0

    async def _adopt(self, vendor_ids: list[str]) -> None:
        """A vendor that comes back, maybe from another process, goes on from where it was if it is still live."""
        places = await self._pipeline([("GET", at_key(id)) for id in vendor_ids])
        found = [(id, at) for id, name in zip(vendor_ids, places, strict=True) if (at := cell_of(name)) is not None]
        if not found:
            return
        registers = await self._pipeline(
            [("HMGET", positions_key(at), f"f{id}", f"p{id}", f"h{id}") for id, at in found]
        )
        owners = {orjson.loads(p[13:])[2] for _, p, _ in registers if p is not None}
        await self._hear_of(owners)
        now = self._clock()
        for (id, at), (fix, presence, http) in zip(found, registers, strict=True):
            self._posted.setdefault(id, at)
            if fix is None:
                continue
            last = int(http[:13]) if http is not None else 0
            if presence is not None:
                _, _, owner, ended = orjson.loads(presence[13:])
                known = self.index.owners.get(owner)
                last = max(last, ended or (known.heard if known is not None else 0))
                if owner == self.index.me and not ended:
                    last = now
            if last + self.index.offline_after + self.index.leave_after > now:
                _, timestamp, lat, long, heading, speed = orjson.loads(fix[13:])
                self.index.put_fix(id, timestamp, lat, long, heading, speed, now)
                self._changed()

    # hearing

    def _hear(self, name: bytes, data: bytes) -> None:
        if data.startswith(self._mine):
            return
        origin, fixes, cards, presences, https, gone = orjson.loads(data)
        now = self._clock()
        index = self.index
        index.owner_heard(origin, now, now)
        if name == ROAM:
            self._hear_roam(fixes, cards, presences, https, gone, now)
            return
        for id, *card in cards:
            index.put_card(id, Card(*card), now)
        for id, since, owner, ended in presences:
            index.put_presence(id, Presence(since, owner, ended), now)
        for id, at in https:
            index.put_http(id, at, now)
        for id, timestamp, lat, long, heading, speed in fixes:
            if index.put_fix(id, timestamp, lat, long, heading, speed, now) and id not in self.fleet:
                self._left_what_is_heard(index.vendors[id])
        for id in gone:
            index.remove(id)
        self._changed()

    def _left_what_is_heard(self, vendor: Vendor) -> None:
        """Of a vendor that went where this process does not listen, it would hear nothing more."""
        if parent(vendor.cell, BUS_LEVEL) not in self._cells:
            self.index.remove(vendor.vendor_id)

    def _hear_roam(
        self, fixes: list[Any], cards: list[Any], presences: list[Any], https: list[Any], gone: list[str], now: int
    ) -> None:
        index, fleet = self.index, self.fleet
        mine = {id for id, *_ in presences if id in fleet}
        wanted = mine | {id for id, *_ in presences if id in self._listed}
        for id in gone:
            index.remove(id)
        if not wanted:
            return
        for id, *card in cards:
            if id in wanted:
                index.put_card(id, Card(*card), now)
        for id, at in https:
            if id in wanted:
                index.put_http(id, at, now)
        for id, timestamp, lat, long, heading, speed in fixes:
            if id in mine and index.put_fix(id, timestamp, lat, long, heading, speed, now):
                # It was written elsewhere: this process's next fix must be told there, and here it is outdated.
                at = parent(index.vendors[id].cell, BUS_LEVEL)
                if self._posted.get(id) != at:
                    self.mark(id, Part.CLAIM)
        for id, since, owner, ended in presences:
            if id in wanted:
                index.put_presence(id, Presence(since, owner, ended), now)
                if id in mine and ended:
                    fleet.reclaim(id, now)
        moved = [id for id in wanted if id in self._listed]
        if moved:
            self._to_follow.update(moved)
            self._load_wake.set()
        self._changed()

    # reading

    async def _load_loop(self) -> None:
        """Read cells once their channels are subscribed, follow listed vendors, and let idle cells go."""
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._load_wake.wait()
            self._load_wake.clear()
            try:
                if self._to_load:
                    cells, self._to_load = self._to_load, set()
                    try:
                        await self._load(cells)
                    except BaseException:
                        self._to_load |= cells
                        raise
                if self._to_follow and self.up:
                    ids, self._to_follow = self._to_follow & set(self._listed), set()
                    try:
                        await self._find(list(ids), wait=False)
                    except BaseException:
                        self._to_follow |= ids
                        raise
            except (RedisError, OSError, TimeoutError) as lost:
                self._lost(f"{type(lost).__name__}: {lost}")
                await asyncio.sleep(0.2)
                self._load_wake.set()
            self._let_go(loop.time())

    async def _load(self, cells: Iterable[int]) -> None:
        """Read where everyone in these cells is now; what was missed before is made good by snapshots."""
        again = set()
        for at in cells:
            listened = self._cells.get(at)
            if listened is None:
                continue
            async with asyncio.timeout(self._timeout * 5):
                await self._read_cell(at)
            if listened.loaded:
                again.add(at)
            listened.loaded = True
            listened.ready.set()
        self._changed()
        if again:
            self._gap(frozenset(again))

    async def _read_cell(self, at: int) -> None:
        index, key = self.index, positions_key(at)
        seen: set[str] = set()
        fixes: list[tuple[str, bytes]] = []
        cursor: int | bytes = 0
        while True:
            cursor, flat = await self._execute("HSCAN", key, cursor, "COUNT", 1000)
            values = flat.values() if isinstance(flat, dict) else flat[1::2]
            fields = list(flat.keys() if isinstance(flat, dict) else flat[::2])
            registers = [(f[:1], orjson.loads(v[13:])) for f, v in zip(fields, values, strict=True)]
            await self._hear_of({value[2] for kind, value in registers if kind == b"p"})
            now = self._clock()
            # Presence first: a fix without one would wait for it.
            for kind, value in sorted(registers, key=lambda r: r[0], reverse=True):
                seen.add(value[0])
                if kind == b"p":
                    index.put_presence(value[0], Presence(*value[1:]), now)
                elif kind == b"h":
                    index.put_http(value[0], value[1], now)
                elif kind == b"c":
                    index.put_card(value[0], Card(*value[1:]), now)
                else:
                    id, timestamp, lat, long, heading, speed = value
                    if index.put_fix(id, timestamp, lat, long, heading, speed, now) and id not in self.fleet:
                        self._left_what_is_heard(index.vendors[id])
                    fixes.append((id, b"%013d" % timestamp))
            if int(cursor) == 0:
                break
        for vendor in index.in_bus_cell(at):
            if vendor.vendor_id not in seen and vendor.vendor_id not in self.fleet:
                index.remove(vendor.vendor_id)
        stale = [part for fix in fixes if fix[0] not in index.vendors for part in fix]
        if stale:
            await self._pipeline([("EVAL", DROP, 1, key, *stale[: CHUNK * 2])])

    async def _hear_of(self, owners: set[str]) -> None:
        """Learn when processes not heard of yet gave their last sign of life."""
        unknown = [owner for owner in owners if owner != self.index.me and owner not in self.index.owners]
        if unknown:
            heard = await self._pipeline([("GET", owner_key(owner)) for owner in unknown])
            now = self._clock()
            for owner, at in zip(unknown, heard, strict=True):
                self.index.owner_heard(owner, min(int(at or 0), now), now)

    async def _find(self, vendor_ids: list[str], *, wait: bool = True) -> bool:
        """Hear the cells in which listed vendors are."""
        places = await self._pipeline([("GET", at_key(id)) for id in vendor_ids])
        complete = True
        for id, name in zip(vendor_ids, places, strict=True):
            at = cell_of(name)
            if id not in self._listed or at is None or self._followed.get(id) == at:
                continue
            old = self._followed.get(id)
            self._followed[id] = at
            complete &= await self.acquire((at,), timeout=2.0 if wait else 0)
            if old is not None:
                self.release((old,))
        return complete

    def _let_go(self, now: float) -> None:
        idle = [at for at, c in self._cells.items() if c.refs == 0 and now - (c.idle_since or now) > LINGER]
        for at in idle:
            del self._cells[at]
            self._named.pop(channel(at), None)
            self._to_load.discard(at)
            for link in self._links.values():
                link.drop((channel(at),))
            for vendor in self.index.in_bus_cell(at):
                if vendor.vendor_id not in self.fleet:
                    self.index.remove(vendor.vendor_id)

    # connections

    async def _alive_loop(self) -> None:
        """Give a sign of life, and rewrite all vendors before what Redis holds of them ends."""
        loop = asyncio.get_running_loop()
        refreshed = loop.time()
        while True:
            now = self._clock()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._pipeline(
                        [
                            ("SET", owner_key(self.index.me), now, "EX", OWNER_TTL),
                            ("SPUBLISH", ROAM, CellBatch().message(self.index.me)),
                        ]
                    )
                self._found()
            except (RedisError, OSError, TimeoutError) as lost:
                self._lost(f"{type(lost).__name__}: {lost}")
            if loop.time() - refreshed > REFRESH:
                refreshed = loop.time()
                for vendor_id in self.fleet.sockets:
                    self.mark(vendor_id, Part.ALL)
            await asyncio.sleep(ALIVE)

    async def _links_loop(self) -> None:
        """Own the subscriptions' tasks; in a cluster, follow its shape."""
        while True:
            try:
                if self.cluster and not self.up:
                    async with asyncio.timeout(self._timeout * 2):
                        await self._refresh_topology()
                self._link(ROAM)
                for at in self._cells:
                    self._link(channel(at))
            except (RedisError, OSError, TimeoutError) as lost:
                self._lost(f"{type(lost).__name__}: {lost}")
            for node, task in tuple(self._link_tasks.items()):
                if task.done():
                    del self._link_tasks[node], self._links[node]
                    if not task.cancelled() and (broken := task.exception()) is not None:
                        raise broken
            await asyncio.sleep(0.5)

    async def _refresh_topology(self) -> None:
        cluster = cast(RedisCluster, self._client)
        await cluster.initialize()
        nodes = cluster.nodes_manager
        await nodes.initialize()

    def _subscribe(self, at: int) -> None:
        with suppress(RedisError, OSError):
            self._link(channel(at))

    def _link(self, name: bytes) -> None:
        """Have a channel heard on the node that serves it, and on no other."""
        node = self._node(name)
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = Subscription(
                lambda: self._connection(node), self._hear, self._subscribed, self._unheard
            )
            self._link_tasks[node] = asyncio.create_task(link.run(), name=f"bus-link-{node[0]}:{node[1]}")
        if name not in link.wanted:
            for other in self._links.values():
                if other is not link and name in other.wanted:
                    other.drop((name,))
            link.want((name,))

    def _node(self, name: bytes) -> tuple[str, int]:
        if not self.cluster:
            return str(self._options.get("host", "localhost")), int(self._options.get("port", 6379))
        node = cast(RedisCluster, self._client).get_node_from_key(name.decode())
        if node is None:
            raise ConnectionError(f"no node of the cluster serves channel {name!r}")
        return str(node.host), int(node.port)

    def _connection(self, node: tuple[str, int]) -> Connection:
        options = {**self._options, "host": node[0], "port": node[1]}
        make = options.pop("connection_class", Connection)
        options.pop("path", None) if make is Connection else None
        connection: Connection = make(**options)
        return connection

    def _subscribed(self, names: frozenset[bytes]) -> None:
        for name in names:
            at = self._named.get(name)
            if at is not None:
                self._to_load.add(at)
                self._load_wake.set()
            elif name == ROAM:
                if self._roaming:
                    self._to_follow.update(self._listed)
                    self._load_wake.set()
                self._roaming = True

    def _unheard(self, cause: str) -> None:
        self._lost(f"subscription lost: {cause}")

    def _lost(self, cause: str) -> None:
        if self.up or self.cause != cause:
            self.cause = cause
        if self.up:
            self.up = False
            self.gaps += 1
            self.index.frozen = True
            log.warning("redis is away; vendors and watchers of this process go on", cause=cause)

    def _found(self) -> None:
        if self.up or not all(link.connected for link in self._links.values()):
            return
        log.info("redis is there", cause=self.cause)
        first = self.cause == "not connected yet"
        self.up, self.cause = True, None
        now = self._clock()
        if not first:
            for name in tuple(self.index.owners):
                self.index.owner_heard(name, now, now)
            # What Redis holds may be gone or old: this process's vendors are written anew.
            for vendor_id in self.fleet.sockets:
                self.mark(vendor_id, Part.ALL)
            self._to_follow.update(self._listed)
            self._load_wake.set()
        self.index.frozen = False

    async def _pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False) if not self.cluster else self._client.pipeline()
        for command in commands:
            # Of a SET … GET the client would otherwise tell only that it was done.
            pipeline.execute_command(*command, get=command[-1] == "GET")
        return await pipeline.execute()

    async def _execute(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)


def cell_of(name: bytes | None) -> int | None:
    """The bus cell that a name read from Redis stands for."""
    return None if name is None else named_cell(name.decode())
