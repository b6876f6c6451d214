"""What existing tracker apps send, as our ping objects: OwnTracks, and the OsmAnd protocol of several apps. Pure.

Nothing is checked here but the form: the ping objects go through `protocol.decode_pings`, so every app meets the same
checks. Units become ours: epoch milliseconds, metres per second.

OwnTracks in HTTP mode (owntracks.org/booklet/tech/http and /json) posts one JSON message at a time: `lat`, `lon`, `tst`
in seconds, `vel` in km/h, `cog` in degrees. iOS drops a message that was answered 4xx, so nothing blocks its queue.

The OsmAnd protocol (traccar.org/osmand) is spoken by Traccar Client, OsmAnd's online tracking and GPSLogger's custom
URL. Its form has `lat`, `lon`, `timestamp`, `speed` in knots, `bearing`; Traccar Client from 9.0 posts JSON, in m/s.
OsmAnd ({5}) and GPSLogger (%SPD) fill in metres per second: their URL says `speedUnit=mps`. Traccar Client and OsmAnd
keep what was not answered 2xx and send it again before all else, GPSLogger tries three times.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.fields import LAST_TIMESTAMP, decode_object, shown

KMH = 1 / 3.6
SPEED_UNITS = {"kn": 1852 / 3600, "kmh": KMH, "mps": 1.0}
"""Metres per second in one of each; the OsmAnd protocol's own is the knot."""
FIRST_MILLISECONDS = 10**11
"""A number of the OsmAnd protocol from here on is milliseconds (since 1973), below it seconds (until 5138)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def owntracks(data: bytes) -> list[Any]:
    """The pings of an OwnTracks message, or of an array of them; none in what is no location, nor in an empty body.

    ProtocolError for an encrypted message and for what is no OwnTracks message.
    """
    if not data.strip():
        return []  # how the apps say that a friend was deleted
    try:
        body = orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError) as bad:
        raise ProtocolError(ErrorCode.INVALID_JSON, f"the message is not JSON: {bad}") from None
    pings: list[Any] = []
    for message in body if type(body) is list else [body]:
        kind = message.get("_type") if type(message) is dict else None
        if type(kind) is not str:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"an OwnTracks message has its _type, not {shown(message)}")
        if kind == "encrypted":
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE,
                "an encrypted message can't be read here: clear the encryption key in the app and use an https:// URL",
            )
        if kind == "location":
            pings.append(_owntracks_ping(message))
    return pings


def _owntracks_ping(message: Mapping[str, Any]) -> dict[str, Any]:
    tst: Any = message.get("tst")
    return {
        "lat": message.get("lat"),
        "long": message.get("lon"),
        "timestamp": round(tst * 1000) if type(tst) in (int, float) and abs(tst) < LAST_TIMESTAMP else tst,
        "heading": message.get("cog"),
        "speed": _scaled(message.get("vel"), KMH),
    }


def osmand_form(parameters: Mapping[str, str]) -> list[Any]:
    """The ping of a request in the OsmAnd protocol, from its query or form; none where it says that it has no position.

    ProtocolError for a time or a unit that can't be read.
    """
    get = parameters.get
    lat, long = get("lat"), get("lon")
    if "location" in parameters:
        lat, _, long = parameters["location"].partition(",")
    if get("valid", "").lower() in ("false", "0"):
        return []
    if lat is None and long is None and ("cell" in parameters or "wifi" in parameters):
        return []  # cell towers and WiFi are not looked up
    unit = get("speedUnit", "kn")
    if unit not in SPEED_UNITS:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"speedUnit is one of {', '.join(SPEED_UNITS)}, not {unit!r}")
    timestamp = get("timestamp")
    return [
        {
            "lat": _number(lat),
            "long": _number(long),
            "timestamp": None if timestamp is None else _osmand_time(timestamp),
            "heading": _number(get("bearing", get("heading"))),
            "speed": _scaled(_number(get("speed")), SPEED_UNITS[unit]),
        }
    ]


def osmand_json(data: bytes) -> tuple[list[Any], str | None]:
    """The pings of a JSON body as Traccar Client posts it, and its `device_id`; `location` is one or an array."""
    body = decode_object(data)
    location = body.get("location")
    if location is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, "location is missing: this is not what Traccar Client posts")
    device_id = body.get("device_id")
    locations = location if type(location) is list else [location]
    return [_osmand_ping(one) for one in locations], device_id if type(device_id) is str else None


def _osmand_ping(location: Any) -> Any:
    coords = location.get("coords") if type(location) is dict else None
    if type(coords) is not dict:
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE, f"location is an object with coords, an object too, not {shown(location)}"
        )
    return {
        "lat": coords.get("latitude"),
        "long": coords.get("longitude"),
        "timestamp": location.get("timestamp"),
        "heading": coords.get("heading"),
        "speed": coords.get("speed"),
    }


def _osmand_time(text: str) -> int:
    """Epoch ms of seconds, milliseconds, ISO 8601 or `YYYY-MM-DD HH:MM:SS`; UTC where no zone is said."""
    number = _number(text)
    try:
        if type(number) is float:
            return round(number * 1000 if number < FIRST_MILLISECONDS else number)
        if ":" not in text:
            raise ValueError
        # A + that was not escaped came as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return round((moment - _EPOCH).total_seconds() * 1000)
    except (ValueError, OverflowError):
        raise ProtocolError(
            ErrorCode.INVALID_TIMESTAMP,
            f"timestamp is epoch seconds or milliseconds, ISO 8601 or YYYY-MM-DD HH:MM:SS, not {shown(text)}",
        ) from None


def basic(header: str) -> tuple[str, str] | None:
    """User and password of an `Authorization: Basic` header; None when it is none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None


def is_token(text: str | None) -> bool:
    """Whether an identifier typed into an app is a token rather than a name: a JWT begins with `{"`, encoded."""
    return text is not None and text.startswith("eyJ") and text.count(".") == 2


def _number(text: str | None) -> float | str | None:
    """A number where it is one; else as it came, for the checks to name it."""
    if text is None or "_" in text:
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _scaled(value: Any, factor: float) -> float | None:
    return value * factor if type(value) in (int, float) else None
