"""A vendor's stored history: the range and cursor of a query, and pages as JSON, GeoJSON and GPX. Pure.

Timestamps are epoch milliseconds, positions degrees. A page starts after the (timestamp, id) of the previous page's
last row, so pages neither skip nor repeat rows, even if rows are stored meanwhile.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import urlencode
from xml.sax.saxutils import escape

import orjson

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.fields import epoch_ms, shown

DAY_MS = 86_400_000
DEFAULT_LIMIT = 1000
MAX_LIMIT = 10_000
LATEST_MS = 253_402_300_800_000
"""The year 10000: no stored timestamp is later."""

_EPOCH = datetime(1970, 1, 1)
_DIGITS = re.compile(r"-?[0-9]{1,15}")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class LocationRow(NamedTuple):
    """A stored ping; (timestamp, id) is its place in the history."""

    id: str
    timestamp: int
    lat: float
    long: float


@dataclass(frozen=True, slots=True)
class Range:
    """A requested range: from_ms <= timestamp < to_ms, at most `limit` rows after `after`, a (timestamp, id)."""

    from_ms: int
    to_ms: int
    limit: int
    after: tuple[int, str] | None

    def next_query(self, cursor: str) -> str:
        """Returns the query string of the next page, with the range fixed."""
        return urlencode({"from": self.from_ms, "to": self.to_ms, "limit": self.limit, "cursor": cursor})


class Format(StrEnum):
    """The media types of history, the preferred one first."""

    JSON = "application/json"
    GEOJSON = "application/geo+json"
    GPX = "application/gpx+xml"


# requests


def decode_range(query: Mapping[str, str], now: int, future_tolerance_ms: int) -> Range:
    """Returns the range of a query's `from`, `to`, `limit` and `cursor`; by default the last 24 h.

    A stored ping may be ahead of `now` by the tolerance, so the default end is too.
    """
    to_ms = _moment(query, "to")
    from_ms = _moment(query, "from")
    if to_ms is None:
        to_ms = now + future_tolerance_ms + 1
    if from_ms is None:
        from_ms = max(0, min(to_ms, now) - DAY_MS)
    if from_ms > to_ms:
        raise ProtocolError(ErrorCode.INVALID_TIMESTAMP, f"from {from_ms} is later than to {to_ms}")
    limit_text = query.get("limit")
    limit = DEFAULT_LIMIT
    if limit_text is not None:
        limit = int(limit_text) if _DIGITS.fullmatch(limit_text) else 0
        if not 1 <= limit <= MAX_LIMIT:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"limit must be 1 to {MAX_LIMIT}, not {shown(limit_text)}")
    cursor = query.get("cursor")
    return Range(from_ms, to_ms, limit, None if cursor is None else decode_cursor(cursor))


def _moment(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if _DIGITS.fullmatch(text):
        value = int(text)
        if not 0 <= value <= LATEST_MS:
            raise ProtocolError(ErrorCode.INVALID_TIMESTAMP, f"{name} {value} is not 1970 to 9999 in milliseconds")
        return value
    try:
        # An unescaped + arrives as a space.
        return epoch_ms(text.replace(" ", "+"))
    except ProtocolError as wrong:
        raise ProtocolError(
            wrong.code,
            f"{name} must be epoch milliseconds or an RFC 3339 time such as 2026-01-31T12:00:00Z, not {shown(text)}",
        ) from None


def encode_cursor(timestamp: int, id: str) -> str:
    """Returns the position of a row in the history as an opaque string."""
    return urlsafe_b64encode(f"{timestamp}.{id}".encode()).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> tuple[int, str]:
    """Returns the (timestamp, id) of a cursor; ProtocolError when this server did not make it."""
    try:
        raw = cursor.encode("ascii")
        text = urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)).decode()
        timestamp, dot, id = text.partition(".")
        place = int(timestamp) if _DIGITS.fullmatch(timestamp) else -1
        # base64 ignores unknown characters: a changed cursor may decode, but it does not encode to itself.
        if dot and "\0" not in id and 0 <= place <= LATEST_MS and encode_cursor(place, id) == cursor:
            return place, id
    except (binascii.Error, ValueError):
        pass
    raise ProtocolError(
        ErrorCode.INVALID_MESSAGE, f"cursor {shown(cursor)} is not the `next` of a page: start again without it"
    )


def negotiate(accept: str) -> Format | None:
    """Returns the format for an Accept header by its q-values (RFC 9110), or None; an empty header accepts all."""
    if not accept.strip():
        return Format.JSON
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = [piece.strip() for piece in part.lower().split(";")]
        if name:
            ranges[name] = max(_quality(parameters), ranges.get(name, 0.0))
    best: Format | None = None
    best_quality = 0.0
    for form in Format:
        # The most specific range decides, even if its quality is 0.
        for name in (form.value, "application/*", "*/*"):
            if name in ranges:
                if ranges[name] > best_quality:
                    best, best_quality = form, ranges[name]
                break
    return best


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            # Stripped first, as `float` accepts more characters as spaces than `strip` removes.
            value = value.strip()
            return float(value) if re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", value) else 0.0
    return 1.0


# responses


def cut(rows: Sequence[LocationRow], limit: int) -> tuple[Sequence[LocationRow], str | None]:
    """Returns one page of rows, of which one more than `limit` was read, and the cursor of the next page, if any."""
    if len(rows) <= limit:
        return rows, None
    page = rows[:limit]
    return page, encode_cursor(page[-1].timestamp, page[-1].id)


def encode(form: Format, vendor_id: str, name: str, parts: Sequence[bytes], cursor: str | None) -> bytes:
    """Returns a page of a vendor's history, made of what `encode_rows` returned for its rows."""
    if form is Format.GPX:
        return _GPX % (escape(_NOT_XML.sub("", name)).encode(), b"\n".join(parts))
    if form is Format.GEOJSON:
        return b'{"type":"FeatureCollection","features":[%s]}' % b",".join(parts)
    return b'{"vendorId":%s,"locations":[%s],"next":%s}' % (
        orjson.dumps(vendor_id),
        b",".join(parts),
        orjson.dumps(cursor),
    )


def encode_rows(form: Format, vendor_id: str, rows: Sequence[LocationRow]) -> bytes:
    """Returns some rows of a page. Thousands at once would block the event loop for tens of milliseconds."""
    if form is Format.GPX:
        return "\n".join(
            [
                f'<trkpt lat="{_decimal(row.lat)}" lon="{_decimal(-180.0 if row.long == 180 else row.long)}">'
                f"<time>{rfc3339(row.timestamp)}</time></trkpt>"
                for row in rows
            ]
        ).encode()
    if form is Format.GEOJSON:
        encoded: list[dict[str, Any]] = [
            {
                "type": "Feature",
                "id": row.id,
                "geometry": {"type": "Point", "coordinates": [row.long, row.lat]},
                "properties": {"vendorId": vendor_id, "timestamp": row.timestamp, "time": rfc3339(row.timestamp)},
            }
            for row in rows
        ]
    else:
        encoded = [{"id": row.id, "lat": row.lat, "long": row.long, "timestamp": row.timestamp} for row in rows]
    return orjson.dumps(encoded)[1:-1]


_GPX = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b'<gpx version="1.1" creator="venta-streamer" xmlns="http://www.topografix.com/GPX/1/1">\n'
    b"<trk><name>%s</name><trkseg>\n%s\n</trkseg></trk>\n</gpx>\n"
)


def rfc3339(timestamp: int) -> str:
    """Returns a timestamp as RFC 3339 in UTC, to the millisecond."""
    return (_EPOCH + timedelta(milliseconds=timestamp)).isoformat(timespec="milliseconds") + "Z"


def _decimal(degrees: float) -> str:
    """Degrees as a decimal of XML, which has no exponents."""
    text = repr(degrees)
    return format(Decimal(text), "f") if "e" in text else text
