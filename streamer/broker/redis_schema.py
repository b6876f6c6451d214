"""The schema of live vendors in Redis: names of keys, last-write-wins scripts, encoding and decoding. Pure.

All keys of a broker cell share a hash tag, so the same code runs on one Redis and on a Redis Cluster:

    v2:{812.403}:now     hash: f/c/p/h + vendorId -> version (13 digits) + JSON: fix, card, presence, last HTTP ping
                         ! -> the hash's epoch, set at its creation; a new one means that Redis lost the hash
    v2:{812.403}         sharded channel: [origin, fixes, cards, presences, https, gone], a message per cell and flush
    v2:at:{vendorId}     a vendor's place: version of its fix (13 digits), broker cell, space, process that wrote it
    v2:{roam}            sharded broadcast channel: heartbeats, and the state of vendors that changed cell or process
    v2:{roam}:owners     sorted set: process -> its last heartbeat, epoch ms
    v2:{roam}:of:PROCESS set: the broker cells a process wrote to, for cleaning up when it is dead
    v2:probe             a key that is never written, for the probe of a node
    v2:once:{vendorId}   set while a vendor without a plan may not go live again

Versions make writes commute: an older register never replaces a newer one, in whatever order they arrive.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import orjson

from streamer.clocks import CLOCK_TOLERANCE
from streamer.geo.grid import cell_name, named_cell
from streamer.live.fix import Fix, fix_of_register
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import Part
from streamer.live.vendor import Card, Presence, Vendor
from streamer.protocol.messages import dumps

CELL_TTL = 2 * 3600
AT_TTL = 24 * 3600
PROCESSES_TTL = 7 * 24 * 3600
"""Seconds after the last write at which data expires."""
CHUNK = 400
"""Maximum number of vendors in one EVAL, as Lua's stack limits the arguments of `unpack`, and in one message."""
SCAN = 1000
"""Registers requested at a time."""
BROADCAST = b"v2:{roam}"
PROCESSES = BROADCAST + b":owners"
EPOCH = b"!"
NEVER = b"0" * 13
ALWAYS = b"9" * 13

LIMIT = f"""
local limit = string.format('%013.0f', redis.call('TIME')[1] * 1000 + {CLOCK_TOLERANCE})
"""
"""Lua: a register with a version beyond this is from a process whose clock is wrong. Every other one replaces it."""

WRITE = (
    LIMIT
    + """
local fields = {}
for i = 3, #ARGV, 2 do fields[#fields + 1] = ARGV[i] end
local held = redis.call('HMGET', KEYS[1], '!', unpack(fields))
local newer = {}
if not held[1] then
  held[1] = ARGV[2]
  newer = {'!', ARGV[2]}
end
for i = 1, #fields do
  local value = ARGV[i * 2 + 2]
  local before = held[i + 1]
  local wrong, was_wrong = value:sub(1, 13) > limit, before and before:sub(1, 13) > limit
  if not before or (was_wrong and not wrong) or (before <= value and was_wrong == wrong) then
    newer[#newer + 1] = fields[i]
    newer[#newer + 1] = value
  end
end
if #newer > 0 then redis.call('HSET', KEYS[1], unpack(newer)) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return held[1]
"""
)
"""KEYS: a cell. ARGV: TTL in seconds, a new epoch, then field, value … Returns the cell's epoch.

Of two values with the same version the greater one stays, as in the index, so that writes commute.
"""

DROP = """
local gone = 0
for i = 1, #ARGV, 4 do
  local id = ARGV[i]
  local held = redis.call('HMGET', KEYS[1], 'f' .. id, 'p' .. id, 'h' .. id)
  local newer = false
  for j = 1, 3 do
    if held[j] and held[j]:sub(1, 13) > ARGV[i + j] then newer = true end
  end
  if not newer then gone = gone + redis.call('HDEL', KEYS[1], 'f' .. id, 'c' .. id, 'p' .. id, 'h' .. id) end
end
return gone
"""
"""KEYS: a cell. ARGV: vendor, newest known versions of its fix, presence and HTTP ping … Keeps newer entries."""

PLACE = (
    LIMIT
    + """
local held = redis.call('GET', KEYS[1])
if held and held:sub(1, 13) > limit and ARGV[1]:sub(1, 13) <= limit then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
  return '0000000000000' .. held:sub(14)
end
if not held or held:sub(1, 13) <= ARGV[1]:sub(1, 13) or held == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
end
return held
"""
)
"""KEYS: a vendor's place. ARGV: the new value, an old value that it may replace even if newer, TTL in seconds."""

UNPLACE = """
local held = redis.call('GET', KEYS[1])
if held and held:sub(1, 13) <= ARGV[1] and (ARGV[2] == '' or held:sub(-#ARGV[2]) == ARGV[2]) then
  return redis.call('DEL', KEYS[1])
end
return 0
"""
"""KEYS: a vendor's place. ARGV: the newest version to delete, the process that must have written it (empty: any)."""

READ = """
local epoch = redis.call('HGET', KEYS[1], '!')
if not epoch then
  epoch = ARGV[2]
  redis.call('HSET', KEYS[1], '!', epoch)
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return epoch
"""
"""KEYS: a cell. ARGV: TTL in seconds, a new epoch. Returns the cell's epoch."""


def channel(cell: int) -> bytes:
    """The channel of a broker cell."""
    return b"v2:{%s}" % cell_name(cell).encode()


def positions_key(cell: int) -> bytes:
    """The hash of a broker cell's current states."""
    return channel(cell) + b":now"


def once_key(vendor_id: str) -> bytes:
    """The key that exists while a vendor without a plan may not go live again."""
    return b"v2:once:" + vendor_id.encode()


def place_key(vendor_id: str) -> bytes:
    """The key of a vendor's place: the broker cell in which it was last written."""
    return b"v2:at:" + vendor_id.encode()


def cells_key(process: str) -> bytes:
    """The set of broker cells that a process wrote to."""
    return BROADCAST + b":of:" + process.encode()


def place_value(version: bytes, cell: int, process: str) -> bytes:
    """The stored form of a vendor's place."""
    return b"%b%b %b" % (version, cell_name(cell).encode(), process.encode())


class Place(NamedTuple):
    """A vendor's place: the version of its fix, the broker cell, and the process that wrote it."""

    version: bytes
    cell: int
    process: str


def parse_place(value: bytes | None) -> Place | None:
    """Decodes a stored place; None if there is none or it is invalid."""
    if value is None or not value[:13].isdigit():
        return None
    try:
        cell, _, process = value[13:].partition(b" ")
        return Place(value[:13], named_cell(cell.decode()), process.decode())
    except ValueError:
        return None


class Versions(NamedTuple):
    """The versions of a vendor's fix, presence and last HTTP ping, 13 digits each."""

    fix: bytes
    presence: bytes
    http: bytes


def versions_of(vendor: Vendor) -> Versions:
    """The current versions of a vendor's state."""
    return Versions(b"%013d" % max(vendor.fix.version, 0), b"%013d" % vendor.presence.since, b"%013d" % vendor.http)


ANY_VERSION = Versions(ALWAYS, ALWAYS, ALWAYS)


class UnknownMessage(Exception):
    """A message that can't be decoded, sent by a process of another version; the text names the error."""


@contextmanager
def decoding() -> Iterator[None]:
    """Converts errors of decoding a message to UnknownMessage."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        raise UnknownMessage(repr(error)) from error


class CellMessage(NamedTuple):
    """A decoded message: the process that sent it, and vendors' registers by id."""

    origin: str
    fixes: list[tuple[str, Fix]]
    cards: list[tuple[str, Card]]
    presences: list[tuple[str, Presence]]
    https: list[tuple[str, int]]
    gone: list[str]


def parse_message(data: bytes, concerns: Callable[[str], bool] | None = None) -> CellMessage:
    """Decodes a `CellBatch.message`, only vendors for which `concerns` is true; raises UnknownMessage."""
    with decoding():
        origin, fixes, cards, presences, https, gone = orjson.loads(data)
        if concerns is not None:
            fixes, cards, presences, https = (
                [register for register in registers if concerns(register[0])]
                for registers in (fixes, cards, presences, https)
            )
        return CellMessage(
            origin,
            [fix_of_register(register) for register in fixes],
            [(id, Card(*card)) for id, *card in cards],
            [(id, Presence(since, owner, ended)) for id, since, owner, ended in presences],
            [(id, at) for id, at in https],
            gone,
        )


class CellBatch:
    """One cell's part of a flush: its message and the fields of its hash, each register encoded once for both."""

    __slots__ = ("cards", "fields", "fixes", "gone", "https", "presences", "vendors")

    def __init__(self) -> None:
        self.fixes: list[bytes] = []
        self.cards: list[bytes] = []
        self.presences: list[bytes] = []
        self.https: list[bytes] = []
        self.gone: list[str] = []
        self.fields: list[bytes] = []
        self.vendors = 0
        """The number of vendors added."""

    def add(self, vendor: Vendor, parts: int, *, store: bool = True) -> None:
        """Adds parts of a vendor's state; with `store` they are also written into the cell's hash."""
        id = vendor.vendor_id
        self.vendors += 1
        if parts & Part.FIX:
            fix = vendor.fix
            self._add(self.fixes, b"f" + id.encode(), fix.version, fix.register(id), store)
        if parts & Part.CARD:
            self._add(self.cards, b"c" + id.encode(), vendor.card.version, vendor.card.register(id), store)
        if parts & Part.PRESENCE and vendor.presence.owner:
            presence = vendor.presence
            self._add(self.presences, b"p" + id.encode(), presence.since, dumps((id, *presence)), store)
        if parts & Part.HTTP and vendor.http:
            self._add(self.https, b"h" + id.encode(), vendor.http, dumps((id, vendor.http)), store)

    def add_fix(self, vendor_id: str, fix: Fix) -> None:
        """Adds a fix of a vendor to the message only."""
        self.vendors += 1
        self.fixes.append(fix.register(vendor_id))

    def add_gone(self, vendor_id: str) -> None:
        """Adds a deleted vendor to the message."""
        self.vendors += 1
        self.gone.append(vendor_id)

    def _add(self, registers: list[bytes], field: bytes, version: int, encoded: bytes, store: bool) -> None:
        registers.append(encoded)
        if store:
            self.fields += (field, b"%013d%b" % (version, encoded))

    def message(self, origin: str) -> bytes:
        """The message to publish."""
        lists = [b"[%b]" % b",".join(registers) for registers in (self.fixes, self.cards, self.presences, self.https)]
        return b"[%b,%b,%b]" % (orjson.dumps(origin), b",".join(lists), orjson.dumps(self.gone))


@dataclass(eq=False, slots=True)
class Registers:
    """One vendor's registers in a cell, in their stored form; None where there is none."""

    NAMES: ClassVar = (b"f", b"c", b"p", b"h")

    fix: bytes | None = None
    card: bytes | None = None
    presence: bytes | None = None
    http: bytes | None = None

    def take(self, kind: bytes, value: bytes) -> None:
        """Sets a register by the first letter of its field."""
        if kind == b"f":
            self.fix = value
        elif kind == b"c":
            self.card = value
        elif kind == b"p":
            self.presence = value
        elif kind == b"h":
            self.http = value

    def process(self) -> str | None:
        """The process of the newest connection."""
        return None if self.presence is None else str(orjson.loads(self.presence[13:])[2])

    def last_seen(self, heard_at: Callable[[str], int]) -> int | None:
        """When the vendor was last seen, epoch ms, None if unknown; `heard_at(process)` is a process's heartbeat."""
        if self.http is None and self.presence is None:
            return None
        last = int(self.http[:13]) if self.http is not None else 0
        if self.presence is not None:
            _, since, process, ended = orjson.loads(self.presence[13:])
            last = max(last, ended or max(since, heard_at(process)))
        return last

    def versions(self) -> Versions:
        """The versions in their stored form."""
        return Versions(*[NEVER if held is None else held[:13] for held in (self.fix, self.presence, self.http)])

    def version(self) -> int:
        """The fix's version, epoch ms; -1 if there is none."""
        return -1 if self.fix is None else int(self.fix[:13])

    def put(self, index: LiveIndex, now: int) -> None:
        """Merges the registers into the index; presence first, as a fix is shown only with one."""
        if self.presence is not None:
            id, since, owner, ended = orjson.loads(self.presence[13:])
            index.put_presence(id, Presence(since, owner, ended), now)
        if self.http is not None:
            id, at = orjson.loads(self.http[13:])
            index.put_http(id, at, now)
        if self.card is not None:
            id, *card = orjson.loads(self.card[13:])
            index.put_card(id, Card(*card), now)
        if self.fix is not None:
            id, fix = fix_of_register(orjson.loads(self.fix[13:]))
            index.put_fix(id, fix, now)


@dataclass(eq=False, slots=True)
class Reading:
    """A read in progress. A message that arrives meanwhile is newer than the vendor's registers in the read.

    `heard`: vendors with a message. `left`: vendors that left the cell, by the version of their fix.
    """

    cursor: bytes | int = 0
    epoch: bytes | None = None
    found: dict[str, Registers] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    left: dict[str, int] = field(default_factory=dict)

    def restart(self) -> None:
        """Starts over: a cursor is invalid on another node, and on the same node after a restart."""
        self.cursor, self.epoch = 0, None
        self.found.clear()

    def take(self, answer: Sequence[Any]) -> bool:
        """Adds a part of the cell; returns whether it was the last."""
        self.cursor, flat = answer
        found = self.found
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            if name == EPOCH:
                continue
            id = name[1:].decode()
            registers = found.get(id)
            if registers is None:
                registers = found[id] = Registers()
            registers.take(name[:1], value)
        return int(self.cursor) == 0

    def processes(self) -> set[str]:
        """The processes whose vendors were read."""
        return {process for registers in self.found.values() if (process := registers.process()) is not None}


def new_epoch() -> str:
    """A random epoch for a cell that does not exist in Redis yet."""
    return secrets.token_hex(6)
