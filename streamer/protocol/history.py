"""A vendor's stored history as it is asked for and answered: range, cursor, JSON, GeoJSON and GPX. Pure.

Timestamps are epoch milliseconds, positions degrees. A page ends at a row; the next one begins after that row's
(timestamp, id), so pages neither skip nor repeat, whatever is stored meanwhile.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode
from xml.sax.saxutils import escape

import orjson

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.messages import epoch_ms, shown

DAY_MS = 86_400_000
DEFAULT_LIMIT = 1000
MOST_LIMIT = 10_000
LATEST_MS = 253_402_300_800_000
"""The year 10000: no stored timestamp is that late."""

_EPOCH = datetime(1970, 1, 1)
_DIGITS = re.compile(r"-?[0-9]{1,15}")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Location(Protocol):
    """A stored ping, as the store gives it."""

    @property
    def id(self) -> str: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def lat(self) -> float: ...
    @property
    def long(self) -> float: ...


Row = TypeVar("Row", bound=Location)


@dataclass(frozen=True, slots=True)
class Range:
    """What is asked for: from_ms <= timestamp < to_ms, at most `limit` after the place `after`, a (timestamp, id)."""

    from_ms: int
    to_ms: int
    limit: int
    after: tuple[int, str] | None

    def next_query(self, cursor: str) -> str:
        """The query string of the page after this one, its range fixed."""
        return urlencode({"from": self.from_ms, "to": self.to_ms, "limit": self.limit, "cursor": cursor})


class Format(StrEnum):
    """The media types that history comes in, the preferred one first."""

    JSON = "application/json"
    GEOJSON = "application/geo+json"
    GPX = "application/gpx+xml"


# what is asked for


def decode_range(query: Mapping[str, str], now: int, future_tolerance_ms: int) -> Range:
    """The range of a query's `from`, `to`, `limit` and `cursor`; by default the last 24 h and all that is stored since.

    A stored ping may be ahead of `now` by the tolerance, so the default end is.
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
        if not 1 <= limit <= MOST_LIMIT:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"limit is 1 to {MOST_LIMIT}, not {shown(limit_text)}")
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
        # A + that was not escaped came as a space.
        return epoch_ms(text.replace(" ", "+"))
    except ProtocolError as wrong:
        raise ProtocolError(
            wrong.code,
            f"{name} is epoch milliseconds or an RFC 3339 time such as 2026-01-31T12:00:00Z, not {shown(text)}",
        ) from None


def encode_cursor(timestamp: int, id: str) -> str:
    """The place of a row in the history, as text that says nothing to a client."""
    return urlsafe_b64encode(f"{timestamp}.{id}".encode()).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> tuple[int, str]:
    """The (timestamp, id) of a cursor; ProtocolError when it is none of ours."""
    try:
        raw = cursor.encode("ascii")
        text = urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)).decode()
        timestamp, dot, id = text.partition(".")
        place = int(timestamp) if _DIGITS.fullmatch(timestamp) else -1
        # What does not encode to itself was changed on the way: base64 leaves out what it does not know.
        if dot and "\0" not in id and 0 <= place <= LATEST_MS and encode_cursor(place, id) == cursor:
            return place, id
    except (binascii.Error, ValueError):
        pass
    raise ProtocolError(
        ErrorCode.INVALID_MESSAGE, f"cursor {shown(cursor)} is not one that came as `next`: begin again without it"
    )


def negotiate(accept: str) -> Format | None:
    """The format for an Accept header, by its q-values (RFC 9110); None when none is accepted. Empty accepts all."""
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
        # The most specific range decides, even when it says no.
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
            # Once and for both: what `strip` takes for a space is not all that `float` does.
            value = value.strip()
            return float(value) if re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", value) else 0.0
    return 1.0


# the answer


def cut(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], str | None]:
    """One page of rows that were read one further than `limit`, and the cursor of the next if there is one."""
    if len(rows) <= limit:
        return rows, None
    page = rows[:limit]
    return page, encode_cursor(page[-1].timestamp, page[-1].id)


def encode(form: Format, vendor_id: str, name: str, rows: Sequence[Location], cursor: str | None) -> bytes:
    """A page of a vendor's history."""
    return ENCODERS[form](vendor_id, name, rows, cursor)


def _json(vendor_id: str, name: str, rows: Sequence[Location], cursor: str | None) -> bytes:
    locations = [{"id": row.id, "lat": row.lat, "long": row.long, "timestamp": row.timestamp} for row in rows]
    return orjson.dumps({"vendorId": vendor_id, "locations": locations, "next": cursor})


def _geojson(vendor_id: str, name: str, rows: Sequence[Location], cursor: str | None) -> bytes:
    features: list[dict[str, Any]] = [
        {
            "type": "Feature",
            "id": row.id,
            "geometry": {"type": "Point", "coordinates": [row.long, row.lat]},
            "properties": {"vendorId": vendor_id, "timestamp": row.timestamp, "time": rfc3339(row.timestamp)},
        }
        for row in rows
    ]
    return orjson.dumps({"type": "FeatureCollection", "features": features})


def _gpx(vendor_id: str, name: str, rows: Sequence[Location], cursor: str | None) -> bytes:
    points = "\n".join(
        [
            f'<trkpt lat="{_decimal(row.lat)}" lon="{_decimal(-180.0 if row.long == 180 else row.long)}">'
            f"<time>{rfc3339(row.timestamp)}</time></trkpt>"
            for row in rows
        ]
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<gpx version="1.1" creator="venta-streamer" xmlns="http://www.topografix.com/GPX/1/1">\n'
        f"<trk><name>{escape(_NOT_XML.sub('', name))}</name><trkseg>\n{points}\n</trkseg></trk>\n</gpx>\n"
    ).encode()


ENCODERS: dict[Format, Callable[[str, str, Sequence[Location], str | None], bytes]] = {
    Format.JSON: _json,
    Format.GEOJSON: _geojson,
    Format.GPX: _gpx,
}


def rfc3339(timestamp: int) -> str:
    """A timestamp as RFC 3339 in UTC, to the millisecond."""
    return (_EPOCH + timedelta(milliseconds=timestamp)).isoformat(timespec="milliseconds") + "Z"


def _decimal(degrees: float) -> str:
    """Degrees as XML's decimal, which knows no exponent."""
    text = repr(degrees)
    return format(Decimal(text), "f") if "e" in text else text
