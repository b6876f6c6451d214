"""The wire contract: decode and validate what clients send, encode what they get. Pure.

Positions are degrees, `timestamp` is epoch milliseconds, payloads are JSON in UTF-8 bytes. Whatever can't be accepted
raises ProtocolError with the code of the contract and a message that names the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import Area, Box, Circle, Polygon
from streamer.settings import Settings

SUBPROTOCOL = "streamer.v1"
BEARER = "bearer."
MAX_ID = 128
MAX_SEQ = 2**53 - 1
"""The largest integer that every JSON implementation reads alike."""
LAST_TIMESTAMP = 36**8 - 1
"""The largest epoch milliseconds a location's id can hold (the year 2059)."""

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


class Ping(NamedTuple):
    """One position a vendor reported: `timestamp` ms, degrees, `heading` degrees, `speed` m/s, both maybe None."""

    seq: int
    timestamp: int
    lat: float
    long: float
    heading: float | None
    speed: float | None


class Reject(NamedTuple):
    """One ping that will never be stored, and why."""

    seq: int
    code: ErrorCode
    message: str


class Pings(NamedTuple):
    """The pings of one message in the order of their `seq`, and those of them that can't be accepted."""

    accepted: list[Ping]
    rejected: list[Reject]
    last_seq: int


@dataclass(frozen=True, slots=True)
class Status:
    """A vendor opens or closes for business."""

    open: bool


@dataclass(frozen=True, slots=True)
class Auth:
    """A token, at the start or in place of the one before."""

    token: str


@dataclass(frozen=True, slots=True)
class Watch:
    """A customer wants the vendors inside an area, or the listed ones; exactly one of the two is given."""

    id: str
    area: Area | None
    vendors: frozenset[str] | None
    open: bool
    interval: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    """A customer is done with a watch."""

    id: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a client may ask for; metres, counts and milliseconds."""

    max_batch: int = 500
    future_tolerance_ms: int = 60_000
    max_radius: float = 100_000.0
    max_extent: float = 200_000.0
    max_vertices: int = 200
    max_listed: int = 200

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """Return what the settings allow."""
        return cls(
            max_batch=settings.max_batch,
            future_tolerance_ms=int(settings.future_tolerance * 1000),
            max_radius=settings.max_radius,
            max_extent=settings.max_extent,
            max_vertices=settings.max_vertices,
            max_listed=settings.max_listed,
        )


# decoding


def decode_object(data: str | bytes) -> dict[str, Any]:
    """The JSON object that a message is."""
    try:
        message = orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError) as bad:
        raise ProtocolError(ErrorCode.INVALID_JSON, f"the message is not JSON: {bad}") from None
    if type(message) is not dict:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"a message is a JSON object, not {shown(message)}")
    return message


def decode_vendor(data: str | bytes, now: int, last_seq: int | None, bounds: Bounds) -> Pings | Status | Auth:
    """A vendor app's message. `now` is epoch ms, `last_seq` the connection's newest seq (None: none yet)."""
    message = decode_object(data)
    kind = message.get("type", "ping")
    if kind == "ping":
        return decode_pings([message], now, last_seq, bounds)
    if kind == "pings":
        pings = message.get("pings")
        if type(pings) is not list:
            raise missing_or_invalid(message, "pings", "a list of pings")
        return decode_pings(pings, now, last_seq, bounds)
    if kind == "status":
        is_open = message.get("open")
        if type(is_open) is not bool:
            raise missing_or_invalid(message, "open", "true or false")
        return Status(is_open)
    if kind == "auth":
        return decode_auth(message)
    raise ProtocolError(
        ErrorCode.INVALID_MESSAGE, f'a vendor sends "ping", "pings", "status" or "auth", not type {shown(kind)}'
    )


def decode_pings(items: Sequence[Any], now: int, last_seq: int | None, bounds: Bounds) -> Pings:
    """Check each ping by itself: one that can't be accepted costs itself only, by its seq.

    A seq that is no integer or does not rise makes the whole message invalid: there would be no number to answer to.
    """
    if len(items) > bounds.max_batch:
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE, f"{len(items)} pings in one message; at most {bounds.max_batch} are taken"
        )
    accepted: list[Ping] = []
    rejected: list[Reject] = []
    latest = now + bounds.future_tolerance_ms
    last = last_seq
    for item in items:
        if type(item) is not dict:
            last = 1 if last is None else last + 1
            rejected.append(Reject(last, ErrorCode.INVALID_MESSAGE, f"a ping is an object, not {shown(item)}"))
            continue
        get = item.get
        seq = get("seq")
        if seq is None:
            seq = 1 if last is None else last + 1
        elif type(seq) is not int or not -MAX_SEQ <= seq <= MAX_SEQ or (last is not None and seq <= last):
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE,
                f"seq is an integer that rises, up to {MAX_SEQ}: {shown(seq)} came after {shown(last)}",
            )
        last = seq
        lat, long, timestamp = get("lat"), get("long"), get("timestamp")
        heading, speed = get("heading"), get("speed")
        # The common case in one look; all others, with their aliases and errors, below.
        if (
            type(lat) is not float
            or type(long) is not float
            or type(timestamp) is not int
            or not (-90.0 <= lat <= 90.0 and -180.0 <= long <= 180.0 and 0 <= timestamp <= latest)
        ):
            try:
                lat, long = position(item)
                timestamp = now if timestamp is None else epoch_ms(timestamp)
                if timestamp > latest:
                    raise ProtocolError(
                        ErrorCode.TIMESTAMP_IN_FUTURE,
                        f"timestamp {timestamp} is {timestamp - now} ms ahead of the server's {now};"
                        f" at most {bounds.future_tolerance_ms} ms are taken: correct the clock by hello.time",
                    )
            except ProtocolError as wrong:
                rejected.append(Reject(seq, wrong.code, wrong.message))
                continue
        if heading is not None:
            heading = measure(heading, 360.0)
        if speed is not None:
            speed = measure(speed, 1e6)
        accepted.append(Ping(seq, timestamp, lat, long, heading, speed))
    if last is None:
        last = 0
    return Pings(accepted, rejected, last)


def decode_auth(message: Mapping[str, Any]) -> Auth:
    """The token of an `auth` message."""
    token = message.get("token")
    if type(token) is not str or not token:
        raise missing_or_invalid(message, "token", "a JWT", quote=False)
    return Auth(token)


def decode_watch(data: str | bytes, bounds: Bounds) -> Watch | Unwatch | Auth:
    """A customer app's message."""
    message = decode_object(data)
    kind = message.get("type")
    if kind == "watch":
        return watch_of(message, bounds)
    if kind == "unwatch":
        return Unwatch(watch_id(message))
    if kind == "auth":
        return decode_auth(message)
    if kind is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, 'type is missing: "watch", "unwatch" or "auth"')
    raise ProtocolError(ErrorCode.INVALID_MESSAGE, f'a customer sends "watch", "unwatch" or "auth", not {shown(kind)}')


def watch_of(message: Mapping[str, Any], bounds: Bounds) -> Watch:
    """A `watch` message, its area within bounds."""
    id = watch_id(message)
    area, vendors = message.get("area"), message.get("vendors")
    if (area is None) == (vendors is None):
        code = ErrorCode.MISSING_FIELD if area is None else ErrorCode.INVALID_MESSAGE
        raise ProtocolError(code, f"watch {id!r} needs an area or a list of vendors, one of the two")
    is_open = message.get("open")
    if is_open is not None and type(is_open) is not bool:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"open is true or false, not {shown(is_open)}")
    interval = message.get("interval")
    if interval is None:
        interval = 0
    elif type(interval) not in (int, float) or not 0 <= interval <= 3_600_000:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"interval is 0 to 3600000 ms, not {shown(interval)}")
    if vendors is None:
        return Watch(id, decode_area(area, bounds), None, bool(is_open), int(interval))
    if type(vendors) is not list or not all(type(v) is str and 0 < len(v) <= MAX_ID for v in vendors):
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"vendors is a list of vendorIds, not {shown(vendors)}")
    if len(vendors) > bounds.max_listed:
        raise ProtocolError(
            ErrorCode.AREA_TOO_LARGE, f"{len(vendors)} vendors in the list; at most {bounds.max_listed} are taken"
        )
    return Watch(id, None, frozenset(vendors), bool(is_open), int(interval))


def watch_id(message: Mapping[str, Any]) -> str:
    """The id by which the client names a watch."""
    id = message.get("id")
    if type(id) is not str or not 0 < len(id) <= MAX_ID:
        raise missing_or_invalid(message, "id", f"a string of 1 to {MAX_ID} characters")
    return id


def named(data: str | bytes) -> str | None:
    """The watch that a message which can't be accepted was about, if it says."""
    with suppress(ProtocolError):
        return watch_id(decode_object(data))
    return None


def decode_area(value: Any, bounds: Bounds) -> Area:
    """A circle, a box or a polygon, no larger than the bounds allow."""
    if type(value) is not dict:
        raise ProtocolError(ErrorCode.INVALID_AREA, f"an area is an object, not {shown(value)}")
    kinds = [kind for kind in ("center", "ne", "polygon") if value.get(kind) is not None]
    if len(kinds) != 1 or (kinds == ["ne"]) != (value.get("sw") is not None):
        raise ProtocolError(
            ErrorCode.INVALID_AREA, f"an area is center and radius, ne and sw, or polygon, not {shown(value)}"
        )
    area: Area
    if kinds == ["center"]:
        lat, long = corner(value, "center")
        radius = value.get("radius")
        if radius is None:
            raise ProtocolError(ErrorCode.MISSING_FIELD, "a circle needs its radius in metres")
        if type(radius) not in (int, float) or not 0 <= radius < math.inf:
            raise ProtocolError(ErrorCode.INVALID_AREA, f"radius is metres, not {shown(radius)}")
        if radius > bounds.max_radius:
            raise ProtocolError(
                ErrorCode.AREA_TOO_LARGE, f"radius {radius:.0f} m; at most {bounds.max_radius:.0f} m are watched"
            )
        return Circle(lat, long, float(radius))
    if kinds == ["ne"]:
        (north, east), (south, west) = corner(value, "ne"), corner(value, "sw")
        if south > north:
            raise ProtocolError(ErrorCode.INVALID_AREA, f"sw.lat {south} is north of ne.lat {north}")
        area = Box(south, west, north, east)
    else:
        area = Polygon(ring(value["polygon"], bounds))
    width, height = area.extent()
    if max(width, height) > bounds.max_extent:
        raise ProtocolError(
            ErrorCode.AREA_TOO_LARGE,
            f"the area spans {width:.0f} m by {height:.0f} m; at most {bounds.max_extent:.0f} m either way are watched",
        )
    return area


def corner(area: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The position that is a member of an area."""
    value = area.get(name)
    if type(value) is not dict:
        raise ProtocolError(ErrorCode.INVALID_AREA, f"{name} is an object with lat and long, not {shown(value)}")
    return position(value)


def ring(value: Any, bounds: Bounds) -> tuple[tuple[float, float], ...]:
    """A polygon's corners as (long, lat), GeoJSON's order."""
    if type(value) is not list or len(value) < 3:
        raise ProtocolError(ErrorCode.INVALID_AREA, f"a polygon is a list of 3 or more [long, lat], not {shown(value)}")
    if len(value) > bounds.max_vertices + 1:
        raise ProtocolError(
            ErrorCode.AREA_TOO_LARGE, f"{len(value)} vertices; at most {bounds.max_vertices} are watched"
        )
    points = []
    for point in value:
        if type(point) is not list or len(point) < 2:
            raise ProtocolError(ErrorCode.INVALID_AREA, f"a vertex is [long, lat], not {shown(point)}")
        lat, long = coordinates(point[1], point[0])
        points.append((long, lat))
    corners = points[:-1] if points[0] == points[-1] else points
    if len(corners) < 3:
        raise ProtocolError(ErrorCode.INVALID_AREA, f"a polygon has 3 or more different vertices, not {shown(value)}")
    if len(corners) > bounds.max_vertices:
        raise ProtocolError(
            ErrorCode.AREA_TOO_LARGE, f"{len(corners)} vertices; at most {bounds.max_vertices} are watched"
        )
    return tuple(corners)


COORDINATES = frozenset(("lat", "latitude", "long", "lng", "lon", "longitude"))
"""The members that say where, aliases too."""


def position(item: Mapping[str, Any]) -> tuple[float, float]:
    """Latitude and longitude of an object, by their names or aliases."""
    lat = item.get("lat")
    if lat is None:
        lat = item.get("latitude")
    long = item.get("long")
    if long is None:
        for alias in ("lng", "lon", "longitude"):
            long = item.get(alias)
            if long is not None:
                break
    if lat is None or long is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, f"{'lat' if lat is None else 'long'} is missing")
    return coordinates(lat, long)


def coordinates(lat: Any, long: Any) -> tuple[float, float]:
    """Two numbers as degrees."""
    if type(lat) not in (int, float) or not -90 <= lat <= 90:
        raise ProtocolError(ErrorCode.INVALID_COORDINATES, f"lat is -90 to 90 degrees, not {shown(lat)}")
    if type(long) not in (int, float) or not -180 <= long <= 180:
        raise ProtocolError(ErrorCode.INVALID_COORDINATES, f"long is -180 to 180 degrees, not {shown(long)}")
    return float(lat), float(long)


def epoch_ms(value: Any) -> int:
    """Epoch milliseconds from a number or an RFC 3339 string."""
    if type(value) is str:
        moment = None
        if _RFC_3339.fullmatch(value):
            with suppress(ValueError):
                moment = datetime.fromisoformat(value.upper())
        if moment is None:
            raise ProtocolError(
                ErrorCode.INVALID_TIMESTAMP,
                f"timestamp {shown(value)} is no RFC 3339 time such as 2026-01-31T12:00:00Z",
            )
        value = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    elif type(value) not in (int, float) or not math.isfinite(value):
        raise ProtocolError(ErrorCode.INVALID_TIMESTAMP, f"timestamp is epoch milliseconds, not {shown(value)}")
    if not 0 <= value <= LAST_TIMESTAMP:
        raise ProtocolError(
            ErrorCode.INVALID_TIMESTAMP, f"timestamp {shown(value)} is not between 1970 and 2059 in milliseconds"
        )
    return int(value)


def measure(value: Any, most: float) -> float | None:
    """A heading or speed; None for what phones send when they don't know (null, negative, out of range, text)."""
    if type(value) in (int, float) and 0 <= value <= most:
        return float(value)
    return None


def missing_or_invalid(message: Mapping[str, Any], name: str, wanted: str, *, quote: bool = True) -> ProtocolError:
    """The error for a member that must be there and is not, or is something else."""
    value = message.get(name)
    if value is None:
        return ProtocolError(ErrorCode.MISSING_FIELD, f"{name} is missing: {wanted}")
    return ProtocolError(ErrorCode.INVALID_MESSAGE, f"{name} is {wanted}" + (f", not {shown(value)}" if quote else ""))


def shown(value: Any) -> str:
    """A client's value for an error message, cut to a length that can't hurt a log."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, RecursionError, orjson.JSONEncodeError):
        text = type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


# encoding


def encode_hello(vendor_id: str, now: int, durable: int | None, max_batch: int) -> bytes:
    return orjson.dumps(
        {"type": "hello", "vendorId": vendor_id, "time": now, "durable": durable, "maxBatch": max_batch}
    )


def encode_ack(seq: int) -> bytes:
    return b'{"type":"ack","seq":%d}' % seq


def encode_reject(reject: Reject) -> bytes:
    return orjson.dumps({"type": "reject", "seq": reject.seq, "code": reject.code, "message": reject.message})


def encode_error(code: ErrorCode, message: str, id: str | None = None, retry_after_ms: int | None = None) -> bytes:
    error: dict[str, Any] = {"type": "error", "code": code, "message": message}
    if id is not None:
        error["id"] = id
    if retry_after_ms is not None:
        error["retryAfterMs"] = retry_after_ms
    return orjson.dumps(error)


def encode_unwatched(id: str) -> bytes:
    return orjson.dumps({"type": "unwatched", "id": id})


def encode_bye(reconnect_after_ms: int) -> bytes:
    return b'{"type":"bye","reconnectAfterMs":%d}' % reconnect_after_ms


def encode_fix(
    vendor_id: str, lat: float, long: float, timestamp: int, heading: float | None, speed: float | None
) -> bytes:
    """A fix as it stands in an update's `moved`."""
    fix: dict[str, Any] = {"vendorId": vendor_id, "lat": lat, "long": long, "timestamp": timestamp}
    if heading is not None:
        fix["heading"] = heading
    if speed is not None:
        fix["speed"] = speed
    return orjson.dumps(fix)


def encode_card(card: Mapping[str, Any]) -> bytes:
    """A card as it stands in a snapshot or in an update's `entered`."""
    return orjson.dumps(card)


def encode_snapshot(id: str, cards: Iterable[bytes]) -> bytes:
    return b'{"type":"snapshot","id":%s,"vendors":[%s]}' % (orjson.dumps(id), b",".join(cards))


def update_body(entered: Sequence[bytes], moved: Sequence[bytes], left: Sequence[str]) -> bytes:
    """An update after its id: the same for every watcher of the same view, so made once."""
    parts = []
    if entered:
        parts.append(b'"entered":[%s]' % b",".join(entered))
    if moved:
        parts.append(b'"moved":[%s]' % b",".join(moved))
    if left:
        parts.append(b'"left":%s' % orjson.dumps(left))
    return b",".join(parts) + b"}"


def update_head(id: str) -> bytes:
    """The start of an update, to be followed by `update_body`."""
    return b'{"type":"update","id":%s,' % orjson.dumps(id)
