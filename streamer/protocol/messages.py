"""Decodes and validates the messages of clients, encodes those of the server. Pure.

Positions are degrees, `timestamp` is epoch milliseconds, payloads are JSON in UTF-8 bytes. An invalid message raises
ProtocolError with an error code and a message that names the value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import Area
from streamer.protocol.areas import decode_area
from streamer.protocol.bounds import Bounds
from streamer.protocol.fields import decode_object, epoch_ms, flag, measure, missing_or_invalid, position, shown

SUBPROTOCOL = "streamer.v1"
BEARER = "bearer."
MAX_ID = 128
MAX_SEQ = 2**53 - 1
"""The largest integer that every JSON implementation reads alike."""
MAX_INTERVAL = 3_600_000
"""The longest interval of a watch, ms."""
DEFAULT_DETAIL = 200
MIN_DETAIL = 16
MAX_DETAIL = 1000
"""Maximum number of groups of a `counts` watch: the default, and the range that a client may request."""


class Ping(NamedTuple):
    """One reported position: `timestamp` ms, degrees, `heading` degrees or None, `speed` m/s or None."""

    seq: int
    timestamp: int
    lat: float
    long: float
    heading: float | None
    speed: float | None


class Reject(NamedTuple):
    """A ping that will never be stored, and why."""

    seq: int
    code: ErrorCode
    message: str


class Pings(NamedTuple):
    """The pings of one message in the order of their `seq`, and the rejected ones."""

    accepted: list[Ping]
    rejected: list[Reject]
    last_seq: int


@dataclass(frozen=True, slots=True)
class Status:
    """A vendor opens or closes for business; a hidden one leaves every map until it opens."""

    open: bool
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Auth:
    """A token: the first one, or a replacement."""

    token: str


@dataclass(frozen=True, slots=True)
class Watch:
    """A customer watches an area or a list of vendors; exactly one of the two is given."""

    id: str
    area: Area | None
    vendors: frozenset[str] | None
    open: bool
    interval: int
    detail: int | None = None
    """For `"as":"counts"`: the approximate maximum number of groups. None: the watch shows vendors."""


@dataclass(frozen=True, slots=True)
class Unwatch:
    """A customer ends a watch."""

    id: str


@dataclass(frozen=True, slots=True)
class Group:
    """Vendors near each other, as a `counts` watch shows them: the mean of their positions, and their number."""

    group: str
    lat: float
    long: float
    count: int
    open: int
    online: int


# decoding


def decode_vendor(data: str | bytes, now: int, last_seq: int | None, bounds: Bounds) -> Pings | Status | Auth:
    """Returns a vendor app's message.

    Args:
        now: The time of arrival, epoch ms.
        last_seq: The newest seq of the connection, None before the first ping.
    """
    message = decode_object(data)
    kind = message.get("type", "ping")
    if kind == "ping":
        return decode_pings([message], now, last_seq, bounds)
    if kind == "pings":
        pings = message.get("pings")
        if type(pings) is not list:
            raise missing_or_invalid(message, "pings", "a list of pings")
        if len(pings) > bounds.max_batch:
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE, f"{len(pings)} pings in one message; the limit is {bounds.max_batch}"
            )
        return decode_pings(pings, now, last_seq, bounds)
    if kind == "status":
        return _decode_status(message)
    if kind == "auth":
        return decode_auth(message)
    raise ProtocolError(
        ErrorCode.INVALID_MESSAGE, f'a vendor sends "ping", "pings", "status" or "auth", not type {shown(kind)}'
    )


def decode_pings(items: Iterable[Any], now: int, last_seq: int | None, bounds: Bounds) -> Pings:
    """Validates each ping by itself: an invalid one is rejected by its seq, the others are unaffected.

    Args:
        items: Objects, or a ProtocolError in place of an item that is not valid.

    Raises:
        ProtocolError: A seq is no integer or does not rise, so no answer can refer to it.
    """
    accepted: list[Ping] = []
    rejected: list[Reject] = []
    oldest, latest = now - bounds.max_age_ms, now + bounds.future_tolerance_ms
    last = last_seq
    for item in items:
        if type(item) is not dict:
            last = 1 if last is None else last + 1
            if not isinstance(item, ProtocolError):
                item = ProtocolError(ErrorCode.INVALID_MESSAGE, f"a ping must be an object, not {shown(item)}")
            rejected.append(Reject(last, item.code, item.message))
            continue
        get = item.get
        seq = get("seq")
        if seq is None:
            seq = 1 if last is None else last + 1
        elif type(seq) is not int or not -MAX_SEQ <= seq <= MAX_SEQ or (last is not None and seq <= last):
            raise ProtocolError(
                ErrorCode.INVALID_MESSAGE,
                f"seq must be a rising integer, up to {MAX_SEQ}: {shown(seq)} came after {shown(last)}",
            )
        last = seq
        lat, long, timestamp = get("lat"), get("long"), get("timestamp")
        heading, speed = get("heading"), get("speed")
        # The common case is checked first. Aliases, other forms and errors follow.
        if (
            type(lat) is not float
            or type(long) is not float
            or type(timestamp) is not int
            or not (-90.0 <= lat <= 90.0 and -180.0 <= long <= 180.0 and oldest <= timestamp <= latest)
            or timestamp < 10**11
        ):
            try:
                lat, long = position(item)
                timestamp = now if timestamp is None else epoch_ms(timestamp)
                check_age(timestamp, now, bounds)
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


def check_age(timestamp: int, now: int, bounds: Bounds) -> None:
    """Raises ProtocolError for a timestamp that is too far in the future or in the past."""
    if timestamp > now + bounds.future_tolerance_ms:
        raise ProtocolError(
            ErrorCode.TIMESTAMP_IN_FUTURE,
            f"timestamp {timestamp} is {timestamp - now} ms ahead of the server's {now};"
            f" the limit is {bounds.future_tolerance_ms} ms: correct the clock by hello.time",
        )
    if timestamp < now - bounds.max_age_ms:
        raise ProtocolError(
            ErrorCode.TIMESTAMP_TOO_OLD,
            f"timestamp {timestamp} is {(now - timestamp) / 86_400_000:.0f} days old;"
            f" the limit is {bounds.max_age_ms / 86_400_000:g} days: check the clock of the device",
        )


def _decode_status(message: Mapping[str, Any]) -> Status:
    if message.get("open") is None:
        raise missing_or_invalid(message, "open", "true or false")
    is_open, hidden = flag(message, "open"), flag(message, "hidden")
    return Status(is_open, hidden and not is_open)


def decode_auth(message: Mapping[str, Any]) -> Auth:
    """Returns the token of an `auth` message."""
    token = message.get("token")
    if type(token) is not str or not token:
        raise missing_or_invalid(message, "token", "a JWT", quote=False)
    return Auth(token)


def decode_watch(data: str | bytes, bounds: Bounds, watches: Collection[str] = ()) -> Watch | Unwatch | Auth:
    """Returns a customer app's message; `watches` are the ids of its open watches."""
    message = decode_object(data)
    kind = message.get("type")
    if kind == "watch":
        return watch_of(message, bounds, watches)
    if kind == "unwatch":
        return Unwatch(watch_id(message))
    if kind == "auth":
        return decode_auth(message)
    if kind is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, 'type is missing: give "watch", "unwatch" or "auth"')
    raise ProtocolError(ErrorCode.INVALID_MESSAGE, f'a customer sends "watch", "unwatch" or "auth", not {shown(kind)}')


def watch_of(message: Mapping[str, Any], bounds: Bounds, watches: Collection[str] = ()) -> Watch:
    """Returns a `watch` message. Its area is decoded last, as that costs the most."""
    id = watch_id(message)
    if len(watches) >= bounds.max_watches and id not in watches:
        raise ProtocolError(
            ErrorCode.TOO_MANY_WATCHES, f"{len(watches)} watches are open; the limit is {bounds.max_watches}"
        )
    area, vendors = message.get("area"), message.get("vendors")
    if (area is None) == (vendors is None):
        code = ErrorCode.MISSING_FIELD if area is None else ErrorCode.INVALID_MESSAGE
        raise ProtocolError(code, f"watch {id!r} needs either an area or a list of vendors")
    is_open = flag(message, "open")
    interval = message.get("interval")
    if interval is None:
        interval = 0
    elif type(interval) not in (int, float) or not 0 <= interval <= MAX_INTERVAL:
        raise missing_or_invalid(message, "interval", f"0 to {MAX_INTERVAL} ms")
    detail = _decode_detail(message)
    if area is not None:
        decoded = decode_area(area, bounds, any_box=detail is not None)
        return Watch(id, decoded, None, is_open, int(interval), detail)
    if detail is not None:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f'watch {id!r} lists vendors: "as":"counts" needs an area')
    if type(vendors) is not list or not all(type(v) is str and 0 < len(v) <= MAX_ID for v in vendors):
        raise missing_or_invalid(message, "vendors", "a list of vendorIds")
    check_listed(vendors, bounds)
    return Watch(id, None, frozenset(vendors), is_open, int(interval))


def check_listed(vendors: Collection[str], bounds: Bounds) -> None:
    """Raises ProtocolError when more vendors are listed than the bounds allow."""
    if len(vendors) > bounds.max_listed:
        raise ProtocolError(
            ErrorCode.AREA_TOO_LARGE, f"{len(vendors)} vendors are listed; the limit is {bounds.max_listed}"
        )


def _decode_detail(message: Mapping[str, Any]) -> int | None:
    """The groups that a `counts` watch asks for; None for a watch of vendors."""
    form = message.get("as")
    if form is None:
        return None
    if form != "counts":
        raise missing_or_invalid(message, "as", '"counts", or left out')
    detail = message.get("detail")
    if detail is None:
        return DEFAULT_DETAIL
    if type(detail) not in (int, float) or not MIN_DETAIL <= detail <= MAX_DETAIL:
        raise missing_or_invalid(message, "detail", f"{MIN_DETAIL} to {MAX_DETAIL} groups")
    return int(detail)


def watch_id(message: Mapping[str, Any]) -> str:
    """Returns the id that the client gave a watch."""
    id = message.get("id")
    if type(id) is not str or not 0 < len(id) <= MAX_ID:
        raise missing_or_invalid(message, "id", f"a string of 1 to {MAX_ID} characters")
    return id


def named(data: str | bytes) -> str | None:
    """Returns the watch id of an invalid message, if it has one."""
    with suppress(ProtocolError):
        return watch_id(decode_object(data))
    return None


# encoding


def dumps(value: Any) -> bytes:
    """Encode JSON that is kept in memory: copies the result, as orjson returns it in a buffer of 4 KB."""
    return b"%b" % orjson.dumps(value)


def encode_hello(vendor_id: str, now: int, durable: int | None, max_batch: int) -> bytes:
    return orjson.dumps(
        {"type": "hello", "vendorId": vendor_id, "time": now, "durable": durable, "maxBatch": max_batch}
    )


def encode_ack(seq: int) -> bytes:
    return b'{"type":"ack","seq":%d}' % seq


def encode_reject(reject: Reject) -> bytes:
    return orjson.dumps({"type": "reject", "seq": reject.seq, "code": reject.code, "message": reject.message})


def encode_error(code: ErrorCode, message: str, id: str | None = None, retry_after_ms: int | None = None) -> bytes:
    message = message.encode(errors="replace").decode()  # it may quote half of a surrogate pair, from a token
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
    """Returns a fix for the `moved` of an update."""
    fix: dict[str, Any] = {"vendorId": vendor_id, "lat": lat, "long": long, "timestamp": timestamp}
    if heading is not None:
        fix["heading"] = heading
    if speed is not None:
        fix["speed"] = speed
    return dumps(fix)


def encode_card(card: Mapping[str, Any]) -> bytes:
    """Returns a card for a snapshot or for the `entered` of an update."""
    return dumps(card)


def encode_snapshot(id: str, cards: Iterable[bytes]) -> bytes:
    return b'{"type":"snapshot","id":%s,"vendors":[%s]}' % (orjson.dumps(id), b",".join(cards))


def update_head(id: str) -> bytes:
    """Returns the start of an update, to be followed by `update_body` or `groups_body`."""
    return b'{"type":"update","id":%s,' % orjson.dumps(id)


def update_body(entered: Sequence[bytes], moved: Sequence[bytes], left: Sequence[str]) -> bytes:
    """Returns an update after its id: the same bytes for every watcher of the same view."""
    parts = []
    if entered:
        parts.append(b'"entered":[%s]' % b",".join(entered))
    if moved:
        parts.append(b'"moved":[%s]' % b",".join(moved))
    if left:
        parts.append(b'"left":%s' % orjson.dumps(left))
    return b",".join(parts) + b"}"


def snapshot_head(id: str) -> bytes:
    """Returns the start of a snapshot of groups, to be followed by `groups_body`."""
    return b'{"type":"snapshot","id":%s,' % orjson.dumps(id)


def groups_body(groups: Iterable[Group]) -> bytes:
    """Returns groups after the head of a snapshot or update: the same bytes for every watcher of the same counts."""
    return b'"groups":%s}' % orjson.dumps(list(groups))
