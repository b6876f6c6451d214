"""Alerts as clients write them: the area or vendors, the events to report, and the URL. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import Area
from streamer.protocol import fields
from streamer.protocol.areas import area_source, decode_area
from streamer.protocol.bounds import Bounds
from streamer.protocol.fields import missing_or_invalid
from streamer.protocol.messages import MAX_ID, check_listed
from streamer.settings import Settings

EVENTS = ("entered", "left", "opened", "closed", "online", "offline")
"""The events of a vendor that an alert can report."""
DEFAULT_QUIET = 600_000
MAX_QUIET = 7 * 86_400_000
"""Milliseconds."""
MAX_URL = 2048
MAX_METADATA = 4096
"""Bytes as JSON."""
MEMBERS = ("area", "vendors", "open", "on", "url", "quiet", "expires", "metadata", "disabled")
"""What a client may set of an alert."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""A null character in JSON text, but not `u0000` after an escaped backslash."""
UNBOUNDED = Bounds(max_radius=2.1e7, max_extent=4.1e7, max_vertices=1 << 20, max_listed=1 << 20)
"""For stored alerts: lowering a limit must not invalidate them."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The vendors and events of an alert; exactly one of `area` and `vendors` is given."""

    area: Area | None
    vendors: frozenset[str] | None
    open: bool
    """Only open vendors count."""
    on: frozenset[str]
    quiet: int
    """Milliseconds during which the same event of a vendor is not reported again."""


@dataclass(frozen=True, slots=True)
class Request:
    """An alert as a client requests it; `source` is its area or list, filter, events and metadata, to be stored."""

    definition: Definition
    source: dict[str, Any]
    url: str
    expires: int | None
    disabled: bool


def bounds_of(settings: Settings) -> Bounds:
    """Returns the limits on an alert's area and list."""
    return replace(
        Bounds.of(settings),
        max_radius=settings.alert_extent / 2,
        max_extent=settings.alert_extent,
        max_listed=settings.alert_vendors,
    )


def decode_alert(body: Mapping[str, Any], bounds: Bounds, now: int) -> Request:
    """Returns the alert of a request's body; raises ProtocolError with the wrong member and the reason."""
    definition, source = _definition(body, bounds)
    url = body.get("url")
    if type(url) is not str or not 0 < len(url) <= MAX_URL:
        raise missing_or_invalid(body, "url", f"an https:// URL of at most {MAX_URL} characters", quote=False)
    expires = body.get("expires")
    if expires is not None:
        expires = fields.epoch_ms(expires)
        if expires <= now:
            raise ProtocolError(ErrorCode.INVALID_TIMESTAMP, f"expires, {expires}, must be in the future")
    metadata = body.get("metadata")
    if metadata is not None:
        try:
            orjson.dumps([[[metadata]]])  # a page of alerts has it as deep
            encoded = orjson.dumps(metadata)
        except orjson.JSONEncodeError:
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, "metadata is nested too deeply: make it flatter") from None
        if type(metadata) is not dict or len(encoded) > MAX_METADATA:
            wanted = f"an object of at most {MAX_METADATA} bytes as JSON"
            raise missing_or_invalid(body, "metadata", wanted, quote=False)
        if _NUL.search(encoded):
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, "metadata has a null character, which can't be stored")
        source["metadata"] = metadata
    return Request(definition, source, url, expires, fields.flag(body, "disabled"))


def stored_definition(source: Mapping[str, Any], quiet: int) -> Definition:
    """Returns the definition of a stored alert, as `decode_alert` made it."""
    return _definition({**source, "quiet": quiet}, UNBOUNDED)[0]


def _definition(body: Mapping[str, Any], bounds: Bounds) -> tuple[Definition, dict[str, Any]]:
    area, vendors = body.get("area"), body.get("vendors")
    if (area is None) == (vendors is None):
        code = ErrorCode.MISSING_FIELD if area is None else ErrorCode.INVALID_MESSAGE
        raise ProtocolError(code, "an alert needs either an area or a list of vendors")
    is_open = fields.flag(body, "open")
    on = body.get("on")
    if type(on) is not list or not on or not all(type(event) is str and event in EVENTS for event in on):
        raise missing_or_invalid(body, "on", f"a list of some of {', '.join(EVENTS)}")
    quiet = body.get("quiet")
    if quiet is None:
        quiet = DEFAULT_QUIET
    elif type(quiet) is not int or not 0 <= quiet <= MAX_QUIET:
        raise missing_or_invalid(body, "quiet", f"0 to {MAX_QUIET} ms")
    source: dict[str, Any] = {"on": [event for event in EVENTS if event in on]}
    if is_open:
        source["open"] = True
    decoded = None
    if area is not None:
        decoded = decode_area(area, bounds)
        source["area"] = area_source(decoded)
    else:
        if type(vendors) is not list or not vendors or not all(_is_id(vendor) for vendor in vendors):
            raise missing_or_invalid(body, "vendors", "a list of vendorIds")
        check_listed(vendors, bounds)
        source["vendors"] = sorted(set(vendors))
    listed = None if vendors is None else frozenset(vendors)
    return Definition(decoded, listed, is_open, frozenset(on), quiet), source


def _is_id(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_ID and "\0" not in value


def merged(present: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an alert's members after a JSON merge patch (RFC 7386); an area replaces a list, and a list an area."""
    known = {name: value for name, value in patch.items() if name in MEMBERS}
    if not known:
        raise ProtocolError(ErrorCode.MISSING_FIELD, f"nothing to change: give some of {', '.join(MEMBERS)}")
    result = dict(present)
    for one, other in (("area", "vendors"), ("vendors", "area")):
        if known.get(one) is not None and other not in known:
            result.pop(other, None)
    for name, value in known.items():
        if value is None:
            result.pop(name, None)
        elif name == "metadata" and type(value) is dict and type(result.get(name)) is dict:
            result[name] = {key: each for key, each in {**result[name], **value}.items() if each is not None}
        else:
            result[name] = value
    return result


def encode_event(
    kind: str, alert_id: str, card: Mapping[str, Any], at: int, metadata: Mapping[str, Any] | None = None
) -> str:
    """Returns the body of a webhook; the same bytes are signed and sent each time."""
    body: dict[str, Any] = {"type": f"vendor.{kind}", "alertId": alert_id, "vendor": card, "at": at}
    if metadata is not None:
        body["metadata"] = metadata
    return orjson.dumps(body).decode()
