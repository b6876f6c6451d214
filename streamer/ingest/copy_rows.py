"""The id of a stored ping, and its row in PostgreSQL's binary COPY format. Pure.

Timestamps are epoch milliseconds (int), positions degrees. The id is derived from the vendor and timestamp only, so the
primary key makes a resend harmless.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from struct import Struct

from streamer.protocol.fields import LAST_TIMESTAMP

COLUMNS = ("id", "vendorId", "lat", "long", "timestamp")
"""The columns of `locations` in the order of a row's fields."""

COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Precedes the rows of a COPY: signature, no flags, no header extension."""

COPY_TRAILER = b"\xff\xff"
"""Follows the rows of a COPY."""

_POSTGRES_EPOCH = 946_684_800_000
_DIGITS = b"0123456789abcdefghijklmnopqrstuvwxyz"
_BLOCK = 36**3
_TRIPLES = tuple(bytes(triple) for triple in product(_DIGITS, repeat=3))


def location_id(vendor_id: str, timestamp: int) -> str:
    """Returns the id of a vendor's ping: `c`, the milliseconds in base 36 (8 characters), a hash of the vendor (16).

    The hash depends on the vendor only (82 bits of BLAKE2b), so it is computed once per vendor. Ids sort by time in
    the C collation.
    """
    return (_prefix(timestamp) + _vendor_hash(vendor_id)).decode()


def id_floor(timestamp: int) -> str:
    """Returns a lower bound of the ids of this millisecond and later ones, clamped to the range of ids."""
    return _prefix(min(max(timestamp, 0), LAST_TIMESTAMP)).decode()


class RowEncoder:
    """Encodes one vendor's pings as rows of a binary COPY into `locations` (COLUMNS); every row is `size` bytes."""

    __slots__ = ("_block", "_head", "_pack", "_tail", "size", "vendor_id")

    def __init__(self, vendor_id: str) -> None:
        vendor = vendor_id.encode()
        self.vendor_id = vendor_id
        self._tail = _vendor_hash(vendor_id) + len(vendor).to_bytes(4) + vendor
        # The field count and the id's first six characters, its last three of time, the vendor, lat, long, timestamp.
        row = _row(len(self._tail))
        self._pack = row.pack
        self.size = row.size
        # All but three characters of the time stay the same for 46 seconds, so they are cached.
        self._block = -1
        self._head = b""

    def row(self, timestamp: int, lat: float, long: float) -> bytes:
        """Returns one row. Raises ValueError for a timestamp outside the range of ids."""
        block = timestamp // _BLOCK
        if block != self._block:
            self._head = b"\x00\x05\x00\x00\x00\x19" + _prefix(timestamp)[:6]
            self._block = block
        return self._pack(
            self._head,
            _TRIPLES[timestamp % _BLOCK],
            self._tail,
            8,
            lat,
            8,
            long,
            8,
            (timestamp - _POSTGRES_EPOCH) * 1000,
        )

    def encode(self, pings: Iterable[tuple[int, float, float]]) -> bytes:
        """Returns the rows of (timestamp, lat, long) in their order."""
        row = self.row
        return b"".join([row(timestamp, lat, long) for timestamp, lat, long in pings])


@lru_cache
def _row(tail: int) -> Struct:
    """Returns the format of a row, shared by vendors whose ids have the same length."""
    return Struct(f">12s3s{tail}sididiq")


def decode_rows(rows: bytes | bytearray, size: int) -> list[tuple[str, str, float, float, int]]:
    """Decodes one vendor's rows to (id, vendorId, lat, long, timestamp), for those that can't be stored by COPY."""
    fields = Struct(f">hi25si{size - 71}sididiq")
    return [
        (id.decode(), vendor_id.decode(), lat, long, micros // 1000 + _POSTGRES_EPOCH)
        for _, _, id, _, vendor_id, _, lat, _, long, _, micros in fields.iter_unpack(rows)
    ]


def _prefix(timestamp: int) -> bytes:
    if not 0 <= timestamp <= LAST_TIMESTAMP:
        raise ValueError(f"timestamp {timestamp} does not fit an id: it is 0 to {LAST_TIMESTAMP} epoch milliseconds")
    rest, low = divmod(timestamp, _BLOCK)
    high, middle = divmod(rest, _BLOCK)
    return b"c" + _TRIPLES[high][1:] + _TRIPLES[middle] + _TRIPLES[low]


def _vendor_hash(vendor_id: str) -> bytes:
    number = int.from_bytes(blake2b(vendor_id.encode(), digest_size=16).digest())
    digits = bytearray()
    for _ in range(16):
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return bytes(digits)
