"""Converts requests of tracker apps to ping objects: OwnTracks, the OsmAnd protocol, and JSON of several apps. Pure.

Trackers keep what is not answered 2xx and send it again before all else. So nothing here refuses a whole request: an
element that can never be stored becomes the ProtocolError that `decode_pings` rejects it with. Units are converted to
epoch milliseconds, metres per second and degrees. `docs/trackers.md` has the payloads of each app.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.fields import decode_json, decode_object, epoch_ms, shown

Item = dict[str, Any] | ProtocolError
"""A ping object, or why there is none."""

KMH = 1 / 3.6
SPEED_UNITS = {"kn": 1852 / 3600, "kmh": KMH, "mps": 1.0}
"""Metres per second in one unit of speed; the OsmAnd protocol's default is the knot."""
INVALID = frozenset(("false", "0", "no", "n", "v"))
"""Values of `valid` for no fix; `v` is NMEA's."""
ROOTS = ("location", "locations", "data", "features", "points", "positions")
"""Members that hold the locations of a JSON body."""
TIMES = ("timestamp", "time", "tst", "recorded_at")
_TIME = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)[T ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?(?:Z|([+ -]\d\d)(?::?(\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)


def owntracks(data: bytes) -> Iterator[Item]:
    """Yields the pings of an OwnTracks message or of an array of them; none for messages that carry no location."""
    if not data.strip():
        return  # how the apps say that a friend was deleted
    try:
        body = decode_json(data)
    except ProtocolError as wrong:
        yield wrong
    else:
        yield from _owntracks(body)


def _owntracks(body: Any) -> Iterator[Item]:
    for message in body if type(body) is list else [body]:
        kind = message.get("_type") if type(message) is dict else None
        if kind == "location":
            get = message.get
            yield _item(get("lat"), get("lon"), get("tst"), get("cog"), get("vel"), speed_unit=KMH)
        elif kind == "encrypted":
            yield ProtocolError(
                ErrorCode.INVALID_MESSAGE,
                "the message is encrypted: clear the encryption key in the app and use an https:// URL",
            )
        elif type(kind) is not str:
            yield ProtocolError(ErrorCode.INVALID_MESSAGE, f"an OwnTracks message needs a _type: {shown(message)}")


def osmand_form(parameters: Mapping[str, str]) -> list[Item]:
    """Returns the ping of a request in the OsmAnd protocol, from its query or form."""
    get = parameters.get
    lat, long = _first(parameters, "lat", "latitude"), _first(parameters, "lon", "long", "lng", "longitude")
    if "location" in parameters:
        lat, _, long = parameters["location"].partition(",")
    if get("valid", "").lower() in INVALID or (lat is None and long is None):
        return [_no_fix()]
    unit = SPEED_UNITS.get(get("speedUnit", "kn"))
    if unit is None:
        units = ", ".join(SPEED_UNITS)
        return [
            ProtocolError(ErrorCode.INVALID_MESSAGE, f"speedUnit must be one of {units}, not {shown(get('speedUnit'))}")
        ]
    heading = _first(parameters, "bearing", "heading", "direction", "course")
    return [_item(lat, long, _first(parameters, *TIMES), heading, get("speed"), speed_unit=unit)]


def tracker_json(data: bytes) -> tuple[Iterator[Item], str | None]:
    """Returns the pings of a JSON body, and the identifier of its device, if it has one.

    The body is that of Traccar Client or a background-geolocation plugin (`location`, `locations`, a bare array or
    object), Overland's GeoJSON features, or Home Assistant's `update_location`. It may hold hundreds of thousands of
    elements, so pings are made lazily.
    """
    try:
        body = decode_json(data)
    except ProtocolError as wrong:
        return iter((wrong,)), None
    device_id: Any = None
    found = body
    if type(body) is dict:
        device_id = body.get("device_id")
        if _first(body, "coords", "latitude", "lat", "gps", "geometry") is None:
            found = _first(body, *ROOTS) or body
    located = found if type(found) is list else [found]
    if any(type(one) is dict and "_type" in one for one in located):
        return _owntracks(found), None
    if device_id is None and located and type(located[0]) is dict and type(located[0].get("properties")) is dict:
        device_id = located[0]["properties"].get("device_id")
    return map(_json_item, located), device_id if type(device_id) is str else None


def is_overland(data: bytes) -> bool:
    """Returns whether a JSON body is Overland's, which accepts only `{"result":"ok"}` as an answer."""
    try:
        locations = decode_object(data).get("locations")
    except ProtocolError:
        return False
    return type(locations) is list and all(type(one) is dict and one.get("type") == "Feature" for one in locations)


def _json_item(location: Any) -> Item:
    if type(location) is not dict:
        return _no_fix()
    if type(location.get("location")) is dict:
        location = location["location"]
    source = location
    for name in ("coords", "properties"):
        if type(location.get(name)) is dict:
            source = location[name]
            break
    lat, long = _first(source, "latitude", "lat"), _first(source, "longitude", "long", "lng", "lon")
    geometry, gps = location.get("geometry"), location.get("gps")
    if type(geometry) is dict:
        gps = geometry.get("coordinates")
        gps = gps[1::-1] if type(gps) is list else None
    if type(gps) is list and len(gps) == 2:
        lat, long = gps
    timestamp = _first(location, *TIMES)
    if timestamp is None:
        timestamp = _first(source, *TIMES)
    heading = _first(source, "heading", "bearing", "course", "direction")
    return _item(lat, long, timestamp, heading, source.get("speed"), speed_unit=1.0)


def _first(source: Mapping[str, Any], *names: str) -> Any:
    return next((source[name] for name in names if source.get(name) is not None), None)


def _item(lat: Any, long: Any, timestamp: Any, heading: Any, speed: Any, *, speed_unit: float) -> Item:
    lat, long, speed = _number(lat), _number(long), _number(speed)
    if (lat is None and long is None) or (lat == 0 and long == 0):
        return _no_fix()
    try:
        return {
            "lat": lat,
            "long": long,
            "timestamp": None if timestamp is None else _time(timestamp),
            "heading": _number(heading),
            "speed": speed * speed_unit if type(speed) in (int, float) else None,
        }
    except ProtocolError as wrong:
        return wrong


def _no_fix() -> ProtocolError:
    # It must not quote the request, which may contain the token.
    return ProtocolError(ErrorCode.MISSING_FIELD, "the device has no position: no coordinates, valid=false, or 0,0")


def _time(value: Any) -> int:
    """Epoch ms of seconds, milliseconds or ISO 8601, as a number or text; UTC where no zone is given."""
    value = _number(value)
    if type(value) is str and (parts := _TIME.fullmatch(value)):
        year, month, day, hour, minute, second, fraction, hours, minutes = parts.groups()
        # An unescaped + in a URL arrives as a space.
        zone = f"{hours.replace(' ', '+')}:{minutes or '00'}" if hours else "Z"
        value = f"{year}-{month}-{day}T{hour}:{minute}:{second or '00'}.{fraction or 0}{zone}"
    return epoch_ms(value)


def _number(value: Any) -> Any:
    """Converts text to a number; returns any other value unchanged, so that the checks can quote it."""
    if type(value) is not str or "_" in value:
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def basic(header: str) -> tuple[str, str] | None:
    """Returns user and password of an `Authorization: Basic` header, or None."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None


def is_token(text: str | None) -> bool:
    """Returns whether an identifier typed into an app is a token, not a name: a JWT begins with `{"`, encoded."""
    return text is not None and text.startswith("eyJ") and text.count(".") == 2
