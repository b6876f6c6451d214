"""The wire contract: an error here locks apps out, accepts invalid data, or closes connections for unusual messages."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.shapes import Circle
from streamer.protocol.bounds import Bounds
from streamer.protocol.fields import LAST_TIMESTAMP, decode_object, shown
from streamer.protocol.messages import (
    DEFAULT_DETAIL,
    MAX_ID,
    MAX_SEQ,
    Auth,
    Group,
    Ping,
    Pings,
    Reject,
    Status,
    Unwatch,
    Watch,
    decode_auth,
    decode_pings,
    decode_vendor,
    decode_watch,
    encode_ack,
    encode_bye,
    encode_card,
    encode_error,
    encode_fix,
    encode_hello,
    encode_reject,
    encode_snapshot,
    encode_unwatched,
    groups_body,
    named,
    snapshot_head,
    update_body,
    update_head,
)
from streamer.settings import Settings

NOW = 1_732_467_600_000
BOUNDS = Bounds()
ANY_AGE = Bounds(max_age_ms=NOW)
YEAR = 366 * 86_400_000
HUGE = 10**400


def vendor(message: Any, last_seq: int | None = None, bounds: Bounds = BOUNDS) -> Any:
    return decode_vendor(message if isinstance(message, bytes) else orjson.dumps(message), NOW, last_seq, bounds)


def pinged(bounds: Bounds = BOUNDS, **members: Any) -> Pings:
    """A single ping with a position, and these members."""
    pings = vendor({"lat": 52.23, "long": 21.01, **members}, bounds=bounds)
    assert type(pings) is Pings
    return pings


def accepted(bounds: Bounds = BOUNDS, **members: Any) -> Ping:
    pings = pinged(bounds, **members)
    assert not pings.rejected
    (ping,) = pings.accepted
    return ping


def rejected(**members: Any) -> tuple[ErrorCode, str]:
    pings = pinged(**members)
    assert not pings.accepted
    (reject,) = pings.rejected
    return reject.code, reject.message


def watched(message: Any, bounds: Bounds = BOUNDS) -> Any:
    return decode_watch(message if isinstance(message, bytes) else orjson.dumps(message), bounds)


def area(value: Any, bounds: Bounds = BOUNDS) -> Any:
    return watched({"type": "watch", "id": "w", "area": value}, bounds).area


# what is no message at all


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b'{"lat":NaN}',
        b'{"lat":Infinity}',
        b'{"lat":1e400}',
        b'{"lat":-1e400}',
        b'{"lat":1' + b"0" * 400 + b"}",
        b'{"lat":01}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"lat":1}{"lat":2}',
        b"[" * 100_000,
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        "\ud800",
    ],
)
@pytest.mark.parametrize("decode", [vendor, watched])
def test_not_json(decode: Any, data: bytes | str) -> None:
    """An app with a broken encoder learns so, and the connection lives on."""
    with pytest.raises(ProtocolError) as wrong:
        decode_object(data)
    assert wrong.value.code is ErrorCode.INVALID_JSON
    if type(data) is bytes:
        with pytest.raises(ProtocolError) as wrong:
            decode(data)
        assert wrong.value.code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "ping", [], [{"lat": 1, "long": 2}]])
@pytest.mark.parametrize("decode", [vendor, watched])
def test_not_an_object(decode: Any, value: Any) -> None:
    """JSON that is no object is no message."""
    with pytest.raises(ProtocolError, match="a message must be a JSON object") as wrong:
        decode(orjson.dumps(value))
    assert wrong.value.code is ErrorCode.INVALID_MESSAGE


def test_duplicate_members() -> None:
    """Of a member given twice the last counts, everywhere alike."""
    (ping,) = vendor(b'{"lat":1,"lat":2,"long":3,"long":4,"type":"status","type":"ping"}').accepted
    assert (ping.lat, ping.long) == (2.0, 4.0)


@pytest.mark.parametrize("kind", ["watch", "PING", "", 7, None, [], {}, True])
def test_unknown_vendor_message(kind: Any) -> None:
    """The error for an unknown type lists the known types."""
    with pytest.raises(ProtocolError, match='"ping", "pings", "status" or "auth"') as wrong:
        vendor({"type": kind, "lat": 1, "long": 2})
    assert wrong.value.code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "pings"}, ErrorCode.MISSING_FIELD),
        ({"type": "pings", "pings": None}, ErrorCode.MISSING_FIELD),
        ({"type": "pings", "pings": {}}, ErrorCode.INVALID_MESSAGE),
        ({"type": "pings", "pings": "x"}, ErrorCode.INVALID_MESSAGE),
        ({"type": "pings", "pings": [{"lat": 1, "long": 1}] * 501}, ErrorCode.INVALID_MESSAGE),
        ({"type": "status"}, ErrorCode.MISSING_FIELD),
        ({"type": "status", "open": 1}, ErrorCode.INVALID_MESSAGE),
        ({"type": "status", "open": "true"}, ErrorCode.INVALID_MESSAGE),
        ({"type": "auth"}, ErrorCode.MISSING_FIELD),
        ({"type": "auth", "token": ""}, ErrorCode.INVALID_MESSAGE),
        ({"type": "auth", "token": 7}, ErrorCode.INVALID_MESSAGE),
    ],
)
def test_invalid_vendor_message(message: Any, code: ErrorCode) -> None:
    """A message that lacks its content names what it lacks."""
    with pytest.raises(ProtocolError) as wrong:
        vendor(message)
    assert wrong.value.code is code


def test_a_token_is_never_repeated() -> None:
    """Error messages end in logs, tokens must not."""
    with pytest.raises(ProtocolError) as wrong:
        decode_auth({"token": ["eyJhbGciOi.secret"]})
    assert "secret" not in wrong.value.message


# pings


def test_the_least_ping() -> None:
    """A position is enough: all else is filled in."""
    assert vendor({"lat": 52.23, "long": 21.01}) == Pings([Ping(1, NOW, 52.23, 21.01, None, None)], [], 1)


def test_the_fullest_ping() -> None:
    """What an app may say is taken as it is; what is unknown is ignored."""
    message = {
        "type": "ping",
        "seq": 7,
        "lat": 52.23,
        "long": 21.01,
        "timestamp": NOW - 5,
        "heading": 90,
        "speed": 4.2,
        "accuracy": 8,
        "battery": {"level": 1},
    }
    assert vendor(message) == Pings([Ping(7, NOW - 5, 52.23, 21.01, 90.0, 4.2)], [], 7)


@pytest.mark.parametrize("lat", ["lat", "latitude"])
@pytest.mark.parametrize("long", ["long", "lng", "lon", "longitude"])
def test_aliases(lat: str, long: str) -> None:
    """Positions by the names that other map libraries use are taken, in pings and in areas."""
    (ping,) = vendor({lat: 52, long: -21}).accepted
    assert (ping.lat, ping.long) == (52.0, -21.0)
    assert (type(ping.lat), type(ping.long)) == (float, float)
    assert area({"center": {lat: 52, long: -21}, "radius": 5}) == Circle(52.0, -21.0, 5.0)


def test_the_proper_name_wins() -> None:
    """An alias beside the proper name is an unknown member."""
    assert accepted(lng=1, latitude=2)[2:4] == (52.23, 21.01)
    assert accepted(long=None, lon=5)[3] == 5.0


@pytest.mark.parametrize("name", ["lat", "long"])
def test_missing_coordinate(name: str) -> None:
    """Half a position is rejected by the name of the other half."""
    assert rejected(**{name: None}) == (ErrorCode.MISSING_FIELD, f"{name} is missing")


@pytest.mark.parametrize(
    "value", [True, False, "52.2", [], {}, 1e300, -1e300, 2**63, 18446744073709551615, math.nextafter(180, 360), -180.1]
)
@pytest.mark.parametrize("name", ["lat", "long"])
def test_invalid_coordinate(name: str, value: Any) -> None:
    """Text, booleans and what is off the globe are no degrees, and the message says which value it was."""
    code, message = rejected(**{name: value})
    assert code is ErrorCode.INVALID_COORDINATES
    assert shown(value) in message


@pytest.mark.parametrize(("lat", "long"), [(90, 180), (-90, -180), (90.0, -180.0), (0, 0), (-0.0, 1e-320)])
def test_the_ends_of_the_world(lat: float, long: float) -> None:
    """Poles and the antimeridian are ordinary places."""
    assert accepted(lat=lat, long=long)[2:4] == (lat, long)


@pytest.mark.parametrize("text", ["9" * 19, "9" * 30, "9" * 308, "1e308", "-9223372036854775809"])
def test_huge_numbers(text: str) -> None:
    """Numbers beyond 64 bits are out of range like any other, in whatever member."""
    for name in ("lat", "long", "timestamp"):
        (reject,) = vendor(b'{"lat":1,"long":2,"%s":%s}' % (name.encode(), text.encode())).rejected
        assert reject.code in (ErrorCode.INVALID_COORDINATES, ErrorCode.INVALID_TIMESTAMP)
    with pytest.raises(ProtocolError, match="seq"):
        vendor(b'{"lat":1,"long":2,"seq":%s}' % text.encode())
    assert vendor(b'{"lat":1,"long":2,"speed":%s}' % text.encode()).accepted[0].speed is None


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (NOW, NOW),
        (float(NOW), NOW),
        (NOW + 0.75, NOW),
        (NOW + 60_000, NOW + 60_000),
        (None, NOW),
        ("2024-11-24T17:00:00Z", NOW),
        ("2024-11-24T17:00:00.5Z", NOW + 500),
        ("2024-11-24T17:00:00.123456789Z", NOW + 123),
        ("2024-11-24t18:00:00+01:00", NOW),
        ("2024-11-24 17:00:00-00:00", NOW),
        ("2024-11-24T17:00:00z", NOW),
        (NOW // 1000, NOW),
        (NOW / 1000 + 0.25, NOW + 250),
        (1_732_467_600.123, NOW + 123),
        (NOW - YEAR, NOW - YEAR),
        ("2024-11-24T16:59:60Z", NOW),
        ("2024-11-24T17:59:60.5+01:00", NOW + 500),
        ("2023-12-31T23:59:60Z", 1_704_067_200_000),
    ],
)
def test_timestamps(timestamp: Any, expected: int) -> None:
    """Milliseconds, seconds and RFC 3339 are the same moment, a leap second is the next one; no timestamp is now."""
    ping = accepted(timestamp=timestamp)
    assert ping.timestamp == expected
    assert type(ping.timestamp) is int


@pytest.mark.parametrize(
    "timestamp",
    [
        -1,
        -0.5,
        True,
        LAST_TIMESTAMP + 1,
        NOW * 1000,
        2**63,
        1e300,
        "",
        "now",
        str(NOW),
        "2024-11-24",
        "2024-11-24T17:00:00",
        "2024-11-24T17:00Z",
        "20241124T170000.000+0000",
        "2024-W47-7T17:00:00Z",
        "2024-11-24T17:00:00,5Z",
        "2024-11-24T17:00:00Z ",
        "2024-11-24T17:00:00+25:00",
        "2024-02-30T17:00:00Z",
        "2024-11-24T17:00:61Z",
        "٢٠٢٤-11-24T17:00:00Z",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        [],
        {},
    ],
)
def test_invalid_timestamp(timestamp: Any) -> None:
    """What is no moment, or none that can be stored, is rejected as such and not moved elsewhere in time."""
    code, message = rejected(timestamp=timestamp)
    assert code is ErrorCode.INVALID_TIMESTAMP
    assert shown(timestamp) in message or "between 1970 and 2059" in message


def test_the_future() -> None:
    """The error for a clock beyond the tolerance states the difference."""
    code, message = rejected(timestamp=NOW + 60_001)
    assert code is ErrorCode.TIMESTAMP_IN_FUTURE
    assert "60001 ms ahead" in message
    code, _ = rejected(timestamp="2024-11-24T18:00:00Z")
    assert code is ErrorCode.TIMESTAMP_IN_FUTURE


@pytest.mark.parametrize(
    "timestamp",
    [0, 0.5, 86_400, 10**11, NOW - YEAR - 1, NOW // 1000 - 619_315_200, "2005-04-10T17:00:00Z", "2016-12-31T23:59:60Z"],
)
def test_the_distant_past(timestamp: Any) -> None:
    """A clock of another epoch, or a GPS week rollover: such a ping would be stored in a time that is never read."""
    code, message = rejected(timestamp=timestamp)
    assert code is ErrorCode.TIMESTAMP_TOO_OLD
    assert "days old; the limit is 366 days" in message


def test_the_age_is_a_setting() -> None:
    """An operator who lets vendors upload an old archive raises the limit."""
    assert accepted(ANY_AGE, timestamp="1999-01-01T00:00:00Z").timestamp == 915_148_800_000
    assert Bounds.of(Settings(max_age=2)).max_age_ms == 2 * 86_400_000


@pytest.mark.parametrize("value", [None, -1, -0.1, "90", True, [], 1e9])
def test_unknown_heading_and_speed(value: Any) -> None:
    """Phones send -1 or null for what they don't know: the position is good all the same."""
    ping = accepted(heading=value, speed=value)
    assert (ping.heading, ping.speed) == (None, None)


def test_known_heading_and_speed() -> None:
    """Heading is a full circle, speed any that a vehicle has."""
    assert accepted(heading=360, speed=0)[4:] == (360.0, 0.0)
    assert accepted(heading=360.5, speed=12)[4:] == (None, 12.0)


# seq


def test_seq_rises_by_itself() -> None:
    """Without seq the server counts on from what it has."""
    message = {
        "type": "pings",
        "pings": [{"lat": 1, "long": 2}, {"lat": 1, "long": 2, "seq": 9}, {"lat": 1, "long": 2}],
    }
    assert [ping.seq for ping in vendor(message).accepted] == [1, 9, 10]
    assert [ping.seq for ping in vendor(message, 4).accepted] == [5, 9, 10]
    assert vendor(message, 4).last_seq == 10


@pytest.mark.parametrize("seq", [0, -5, MAX_SEQ])
def test_seq_starts_anywhere(seq: int) -> None:
    """The first seq of a connection is the app's choice."""
    assert accepted(seq=seq).seq == seq


@pytest.mark.parametrize("seq", [7, 6, -1, 1.0, 8.5, True, "8", [], 2**53, 2**64 - 1, 1e30])
def test_invalid_seq(seq: Any) -> None:
    """A seq that does not rise or is no integer: there is no number to answer to, so the whole message is invalid."""
    for message in (
        {"lat": 1, "long": 2, "seq": seq},
        {"type": "pings", "pings": [{"lat": 1, "long": 2}, {"seq": seq}]},
    ):
        with pytest.raises(ProtocolError, match="seq must be a rising integer") as wrong:
            vendor(message, 7)
        assert wrong.value.code is ErrorCode.INVALID_MESSAGE


def test_one_bad_ping_costs_itself() -> None:
    """What was collected offline is not lost for one broken entry; each is answered by its seq."""
    good = {"lat": 1.5, "long": 2.5, "timestamp": NOW}
    pings = vendor(
        {"type": "pings", "pings": [good, 7, None, {**good, "lat": 91}, {**good, "seq": 20}, {"long": 3}, []]}, 2
    )
    assert [ping.seq for ping in pings.accepted] == [3, 20]
    assert [(reject.seq, reject.code) for reject in pings.rejected] == [
        (4, ErrorCode.INVALID_MESSAGE),
        (5, ErrorCode.INVALID_MESSAGE),
        (6, ErrorCode.INVALID_COORDINATES),
        (21, ErrorCode.MISSING_FIELD),
        (22, ErrorCode.INVALID_MESSAGE),
    ]
    assert pings.last_seq == 22


def test_the_largest_seq_can_be_answered() -> None:
    """Whatever seq is taken, the reject of the next can be written."""
    (reject,) = vendor({"lat": 91, "long": 0}, MAX_SEQ).rejected
    assert orjson.loads(encode_reject(reject))["seq"] == MAX_SEQ + 1


# watches


def test_watch() -> None:
    """The messages of a customer app, as the contract shows them."""
    circle = {"center": {"lat": 52, "long": 21}, "radius": 500}
    assert watched({"type": "watch", "id": "w1", "area": circle}) == Watch(
        "w1", Circle(52.0, 21.0, 500.0), None, False, 0
    )
    assert watched({"type": "watch", "id": "w1", "vendors": ["a", "b", "a"], "open": True, "interval": 250.9}) == Watch(
        "w1", None, frozenset({"a", "b"}), True, 250
    )
    assert watched({"type": "unwatch", "id": "w1"}) == Unwatch("w1")
    assert watched({"type": "auth", "token": "t"}) == Auth("t")
    assert vendor({"type": "auth", "token": "t"}) == Auth("t")
    assert vendor({"type": "status", "open": False}) == Status(False)


def test_counts() -> None:
    """A map zoomed out asks how many vendors are where, of any box, within bounds of its own."""
    message = {"type": "watch", "id": "z", "as": "counts", "area": {"center": CENTER, "radius": 5}}
    circle = Circle(0.0, 0.0, 5.0)
    assert watched(message) == Watch("z", circle, None, False, 0, DEFAULT_DETAIL)
    assert watched({**message, "detail": 16, "open": True, "interval": 9}) == Watch("z", circle, None, True, 9, 16)
    assert watched({**message, "as": None}).detail is None
    for wrong in ({"as": "count"}, {"as": 1}, {"detail": 15}, {"detail": 1001}, {"detail": "200"}, {"detail": True}):
        with pytest.raises(ProtocolError) as refused:
            watched({**message, **wrong})
        assert refused.value.code is ErrorCode.INVALID_MESSAGE
    with pytest.raises(ProtocolError, match="needs an area"):
        watched({"type": "watch", "id": "z", "as": "counts", "vendors": ["v"]})
    with pytest.raises(ProtocolError) as refused:
        watched({**message, "area": {"center": CENTER, "radius": 1e6}})
    assert refused.value.code is ErrorCode.AREA_TOO_LARGE


def test_groups() -> None:
    """What a `counts` watch is sent: groups by key, the same bytes for all who watch the same."""
    body = groups_body([Group("888.772", 52.2, 21.0, 3, 2, 1)])
    group = {"group": "888.772", "lat": 52.2, "long": 21.0, "count": 3, "open": 2, "online": 1}
    assert orjson.loads(snapshot_head("z") + body) == {"type": "snapshot", "id": "z", "groups": [group]}
    assert orjson.loads(update_head("z") + body) == {"type": "update", "id": "z", "groups": [group]}


def test_too_many_watches_come_first() -> None:
    """The area of a watch that will not be opened is not even looked at; an open watch may still be moved."""
    few = Bounds(max_watches=2)
    with pytest.raises(ProtocolError) as wrong:
        decode_watch(orjson.dumps({"type": "watch", "id": "c", "area": {"polygon": [[0, 0]] * 9}}), few, {"a", "b"})
    assert wrong.value.code is ErrorCode.TOO_MANY_WATCHES
    moved = decode_watch(orjson.dumps({"type": "watch", "id": "b", "vendors": []}), few, {"a", "b"})
    assert type(moved) is Watch


def test_hidden() -> None:
    """A vendor that drives home asks to be on no map; one that opens is not hidden, whatever else it says."""
    assert vendor({"type": "status", "open": False, "hidden": True}) == Status(False, True)
    assert vendor({"type": "status", "open": True, "hidden": True}) == Status(True, False)
    assert vendor({"type": "status", "open": False, "hidden": None}) == Status(False)
    with pytest.raises(ProtocolError, match="hidden must be true or false"):
        vendor({"type": "status", "open": False, "hidden": 1})


CENTER = {"lat": 0, "long": 0}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({}, ErrorCode.MISSING_FIELD),
        ({"type": None}, ErrorCode.MISSING_FIELD),
        ({"type": "ping"}, ErrorCode.INVALID_MESSAGE),
        ({"type": ["watch"]}, ErrorCode.INVALID_MESSAGE),
        ({"type": "unwatch"}, ErrorCode.MISSING_FIELD),
        ({"type": "unwatch", "id": 7}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "vendors": []}, ErrorCode.MISSING_FIELD),
        ({"type": "watch", "id": "", "vendors": []}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "x" * (MAX_ID + 1), "vendors": []}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w"}, ErrorCode.MISSING_FIELD),
        ({"type": "watch", "id": "w", "area": {}, "vendors": []}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": "v1"}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": [7]}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": [""]}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": ["x" * (MAX_ID + 1)]}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": [str(n) for n in range(201)]}, ErrorCode.AREA_TOO_LARGE),
        ({"type": "watch", "id": "w", "vendors": [], "open": 1}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": [], "interval": -1}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": [], "interval": True}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": [], "interval": "5"}, ErrorCode.INVALID_MESSAGE),
        ({"type": "watch", "id": "w", "vendors": [], "interval": 3_600_001}, ErrorCode.INVALID_MESSAGE),
    ],
)
def test_invalid_watch(message: Any, code: ErrorCode) -> None:
    """A customer app learns what its message lacks."""
    with pytest.raises(ProtocolError) as wrong:
        watched(message)
    assert wrong.value.code is code
    assert wrong.value.message


def test_messages_are_short() -> None:
    """A value of any size can't flood a log through the error about it."""
    for message in (
        {"type": "x" * 60_000},
        {"type": "watch", "id": ["y"] * 9_000},
        {"type": "watch", "id": "w", "area": "z" * 999},
    ):
        with pytest.raises(ProtocolError) as wrong:
            watched(message)
        assert len(wrong.value.message) < 250


def test_shown_survives_what_json_does_not() -> None:
    """Values that came another way than by JSON are named by their type."""
    assert shown(object()) == "object"
    assert shown(HUGE) == "int"
    assert shown("é") == '"é"'


# anything at all

NAMES = """type seq lat long lng timestamp heading speed pings open token id area vendors interval
center radius ne sw polygon"""
names = st.sampled_from(NAMES.split())
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-200, 200)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["ping", "pings", "watch", "unwatch", "auth", "status", "2024-11-24T17:00:00Z", NOW])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names | st.text(max_size=3), inner, max_size=6),
    max_leaves=20,
)
messages = st.dictionaries(names, values, max_size=8) | st.builds(
    lambda kind, rest: {**rest, "type": kind},
    st.sampled_from(["ping", "pings", "watch", "unwatch", "auth", "status"]),
    st.dictionaries(names, values, max_size=8),
)


def survives(data: bytes) -> None:
    """Decoding gives a message or a ProtocolError that can be sent."""
    for decode in (vendor, watched):
        try:
            message = decode(data)
        except ProtocolError as wrong:
            orjson.loads(encode_error(wrong.code, wrong.message))
            continue
        if type(message) is Pings:
            seqs = [ping.seq for ping in message.accepted] + [reject.seq for reject in message.rejected]
            assert len(set(seqs)) == len(seqs)
            assert message.last_seq == max(seqs, default=0)
            for reject in message.rejected:
                orjson.loads(encode_reject(reject))
            for _, timestamp, lat, long, heading, speed in message.accepted:
                assert type(timestamp) is int
                assert 0 <= timestamp <= NOW + 60_000
                assert -90 <= lat <= 90
                assert -180 <= long <= 180
                assert heading is None or 0 <= heading <= 360
                assert speed is None or 0 <= speed < math.inf


@settings(max_examples=150)
@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    """No bytes a client may send raise anything but an error for that client."""
    survives(data)


@settings(max_examples=300)
@given(messages)
def test_any_json(message: dict[str, Any]) -> None:
    """No JSON a client may send raises anything but an error for that client."""
    survives(orjson.dumps(message))


# encoding

ids = st.text(min_size=1, max_size=20)
degrees = st.tuples(st.floats(-90, 90), st.floats(-180, 180))
seqs = st.integers(-MAX_SEQ, MAX_SEQ)


@settings(max_examples=60)
@given(seqs, degrees, st.integers(10**11, NOW), st.none() | st.floats(0, 360), st.none() | st.floats(0, 1e6))
def test_pings_round_trip(
    seq: int, at: tuple[float, float], timestamp: int, heading: float | None, speed: float | None
) -> None:
    """A position comes out as it went in, to the last bit."""
    fix = orjson.loads(encode_fix("v", *at, timestamp, heading, speed))
    assert decode_pings([{**fix, "seq": seq}], NOW, None, ANY_AGE).accepted == [
        Ping(seq, timestamp, *at, heading, speed)
    ]
    assert ("heading" in fix, "speed" in fix) == (heading is not None, speed is not None)


@settings(max_examples=60)
@given(st.datetimes(datetime(1970, 1, 2), datetime(2024, 11, 23)), st.integers(-23 * 60, 23 * 60))
def test_moments_round_trip(moment: datetime, offset: int) -> None:
    """A time with any offset is the same millisecond."""
    aware = moment.replace(tzinfo=UTC)
    expected = int(aware.timestamp()) * 1000 + moment.microsecond // 1000
    text = aware.astimezone(timezone(timedelta(minutes=offset))).isoformat()
    assert accepted(ANY_AGE, timestamp=text).timestamp == expected


@settings(max_examples=60)
@given(ids, ids, seqs, st.text())
def test_messages_of_the_server_are_valid_json(id: str, vendor_id: str, seq: int, text: str) -> None:
    """Every message is the JSON of the contract, whatever ids and texts are in it."""

    def loads(data: bytes) -> Any:
        return orjson.loads(data)

    assert loads(encode_ack(seq)) == {"type": "ack", "seq": seq}
    assert loads(encode_bye(5)) == {"type": "bye", "reconnectAfterMs": 5}
    assert loads(encode_unwatched(id)) == {"type": "unwatched", "id": id}
    assert loads(encode_hello(vendor_id, NOW, None, 500)) == {
        "type": "hello",
        "vendorId": vendor_id,
        "time": NOW,
        "durable": None,
        "maxBatch": 500,
    }
    assert loads(encode_reject(Reject(seq, ErrorCode.INVALID_TIMESTAMP, text))) == {
        "type": "reject",
        "seq": seq,
        "code": "ERR_INVALID_TIMESTAMP",
        "message": text,
    }
    error = {"type": "error", "code": "ERR_OVERLOADED", "message": text}
    assert loads(encode_error(ErrorCode.OVERLOADED, text)) == error
    assert loads(encode_error(ErrorCode.OVERLOADED, text, id, 7)) == {**error, "id": id, "retryAfterMs": 7}
    assert loads(encode_error(ErrorCode.OVERLOADED, text + "\ud800")) == {**error, "message": text + "?"}


@settings(max_examples=60)
@given(ids, st.lists(ids, max_size=3), st.lists(ids, max_size=3), st.lists(ids, max_size=3))
def test_joined_messages(id: str, entered: list[str], moved: list[str], left: list[str]) -> None:
    """Snapshots and updates joined from ready bytes are what encoding them whole gives; empty lists are left out."""
    cards = [{"vendorId": name, "open": True} for name in entered]
    fixes = [encode_fix(name, 1.5, 2.5, NOW, None, None) for name in moved]
    encoded = [encode_card(card) for card in cards]
    assert orjson.loads(encode_snapshot(id, encoded)) == {"type": "snapshot", "id": id, "vendors": cards}
    if entered or moved or left:
        lists = {"entered": cards, "moved": [orjson.loads(fix) for fix in fixes], "left": left}
        expected = {"type": "update", "id": id, **{name: entries for name, entries in lists.items() if entries}}
        assert orjson.loads(update_head(id) + update_body(encoded, fixes, left)) == expected


def test_a_refused_watch_is_still_named() -> None:
    """An app with several watches must know which of them was refused."""
    assert named(b'{"type":"watch","id":"w7","area":5}') == "w7"
    assert named(b'{"type":"watch","id":7}') is None
    assert named(b'["w7"]') is None
    assert named(b"{") is None
