"""Single values of a client's message: JSON objects, positions, times. Pure.

An invalid value raises ProtocolError with an error code and a message that names the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from streamer.errors import ErrorCode, ProtocolError

LAST_TIMESTAMP = 36**8 - 1
"""The largest epoch milliseconds that the id of a location can hold (the year 2059)."""
FIRST_MILLISECONDS = 10**11
"""Numbers from here on are milliseconds (since 1973); smaller ones are seconds (until 5138)."""
COORDINATES = frozenset(("lat", "latitude", "long", "lng", "lon", "longitude"))
"""The members of a position, aliases included."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:)(\d\d)((?:\.\d+)?(?:Z|[+-]\d\d:\d\d))", re.ASCII | re.IGNORECASE
)


def decode_json(data: str | bytes, what: str = "the message") -> Any:
    """Returns the value of JSON text."""
    try:
        return orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError) as bad:
        raise ProtocolError(ErrorCode.INVALID_JSON, f"{what} is not JSON: {bad}") from None


def decode_object(data: str | bytes) -> dict[str, Any]:
    """Returns the JSON object of a message."""
    message = decode_json(data)
    if type(message) is not dict:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"a message must be a JSON object, not {shown(message)}")
    return message


def position(item: Mapping[str, Any], *, wrap: bool = False) -> tuple[float, float]:
    """Returns latitude and longitude of an object, by their names or aliases.

    Args:
        wrap: Take a longitude beyond ±180 modulo 360, as map libraries with wrapped worlds give it.
    """
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
    return coordinates(lat, long, wrap=wrap)


def coordinates(lat: Any, long: Any, *, wrap: bool = False) -> tuple[float, float]:
    """Returns two numbers as degrees."""
    if type(lat) not in (int, float) or not -90 <= lat <= 90:
        raise ProtocolError(ErrorCode.INVALID_COORDINATES, f"lat must be -90 to 90 degrees, not {shown(lat)}")
    if type(long) in (int, float):
        if -180 <= long <= 180:
            return float(lat), float(long)
        if wrap and -1e9 <= long <= 1e9:
            return float(lat), (long + 180.0) % 360.0 - 180.0
    raise ProtocolError(ErrorCode.INVALID_COORDINATES, f"long must be -180 to 180 degrees, not {shown(long)}")


def epoch_ms(value: Any) -> int:
    """Returns epoch milliseconds of a number (seconds or milliseconds) or an RFC 3339 string."""
    if type(value) is str:
        value = _rfc_3339_ms(value)
    elif type(value) not in (int, float) or not math.isfinite(value):
        raise ProtocolError(
            ErrorCode.INVALID_TIMESTAMP, f"timestamp must be epoch milliseconds or seconds, not {shown(value)}"
        )
    elif value < FIRST_MILLISECONDS:
        value = round(value * 1000) if value >= 0 else value
    if not 0 <= value <= LAST_TIMESTAMP:
        raise ProtocolError(
            ErrorCode.INVALID_TIMESTAMP,
            f"timestamp {shown(value)} is not between 1970 and 2059: give epoch milliseconds or seconds",
        )
    return int(value)


def _rfc_3339_ms(text: str) -> int:
    parts = _RFC_3339.fullmatch(text)
    with suppress(ValueError, OverflowError):
        if parts is not None:
            date, seconds, rest = parts.groups()
            # A leap second is mapped to the second after it.
            leap = seconds == "60"
            moment = datetime.fromisoformat((date + ("59" if leap else seconds) + rest).upper())
            return (moment - _EPOCH) // timedelta(milliseconds=1) + 1000 * leap
    raise ProtocolError(
        ErrorCode.INVALID_TIMESTAMP,
        f"timestamp {shown(text)} is not an RFC 3339 time such as 2026-01-31T12:00:00Z",
    )


def measure(value: Any, most: float) -> float | None:
    """Returns a heading or speed, or None for the values that phones send for unknown (null, negative, text)."""
    if type(value) in (int, float) and 0 <= value <= most:
        return float(value)
    return None


def flag(message: Mapping[str, Any], name: str) -> bool:
    """Returns an optional member that is true or false; False when it is left out."""
    value = message.get(name)
    if value is not None and type(value) is not bool:
        raise missing_or_invalid(message, name, "true or false")
    return bool(value)


def missing_or_invalid(message: Mapping[str, Any], name: str, wanted: str, *, quote: bool = True) -> ProtocolError:
    """Returns the error for a required member that is missing or of the wrong kind."""
    value = message.get(name)
    if value is None:
        return ProtocolError(ErrorCode.MISSING_FIELD, f"{name} is missing: give {wanted}")
    return ProtocolError(
        ErrorCode.INVALID_MESSAGE, f"{name} must be {wanted}" + (f", not {shown(value)}" if quote else "")
    )


def shown(value: Any) -> str:
    """Returns a client's value for an error message, truncated to a safe length."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, RecursionError, orjson.JSONEncodeError):
        text = type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
