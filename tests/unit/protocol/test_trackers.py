"""What existing tracker apps send, by their documented requests, becomes pings in our units."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.bounds import Bounds
from streamer.protocol.messages import Ping, decode_pings
from streamer.protocol.trackers import basic, is_overland, is_token, osmand_form, owntracks, tracker_json
from tests.support.paths import ROOT

NOW = 1_900_000_000_000

# Requests as the apps make them and their documents print them.
OWNTRACKS_BOOKLET = b'{"lon":2.29513,"lat":48.85833,"_type":"location","tst":1497476456, "tid":"JJ"}'
OWNTRACKS_ANDROID = (
    b'{"_type":"location","acc":15,"alt":440,"batt":46,"conn":"w","lat":46.0681247,"lon":11.1512805,"t":"u",'
    b'"tid":"5t","tst":1551874878,"vac":2,"vel":0}'
)
OWNTRACKS_IOS = (
    b'{"cog":271,"lon":2.29513,"acc":5,"vel":61,"vac":21,"lat":48.85833,"tst":1497349316,"alt":167,'
    b'"_type":"location","tid":"JJ","t":"u","batt":67}'
)
OWNTRACKS_TOPIC = (
    b'{"lon":-122,"acc":5,"created_at":1736161415,"lat":37,'
    b'"topic":"owntracks/ckrey/22A67880-15C3-41A6-9157-25545C7993AC","t":"u","m":1,"tst":1736161169,"conn":"w",'
    b'"alt":0,"_type":"location","tid":"AC"}'
)
TRACCAR_CLIENT_9 = (
    b'{"location":{"timestamp":"2025-06-15T13:45:12.862Z","coords":{"latitude":37.4219983,"longitude":-122.084,'
    b'"accuracy":5,"speed":0,"heading":-1,"altitude":5},"is_moving":false,"odometer":0,"event":"motionchange",'
    b'"battery":{"level":1,"is_charging":false},"activity":{"type":"still"},"extras":{},"_":'
    b'"&id=48241179&lat=37.4219983&lon=-122.084&timestamp=2025-06-15T13:45:12.862Z&"},"device_id":"48241179"}'
)
TRACCAR_CLIENT_9_MOVING = (
    b'{"location":{"event":"motionchange","is_moving":false,"uuid":"0e9a2473-a9a7-4c00-997b-fb97d2154e75",'
    b'"timestamp":"2021-07-21T08:06:34.444Z","odometer":0,"coords":{"latitude":-6.1148096,"longitude":106.6837015,'
    b'"accuracy":3.8,"speed":18.67,"speed_accuracy":0.26,"heading":63,"heading_accuracy":0.28,"altitude":35.7,'
    b'"altitude_accuracy":3.8},"activity":{"type":"still","confidence":100},"battery":{"is_charging":false,'
    b'"level":0.79},"extras":{}},"device_id":"8737767034"}'
)


def decoded(items: Iterable[Any]) -> list[Ping]:
    """The pings of items that must all be good."""
    pings = decode_pings(items, NOW, None, Bounds(max_age_ms=NOW))
    assert not pings.rejected
    return pings.accepted


def codes(items: Iterable[Any]) -> list[ErrorCode]:
    """Why none of these items can be stored."""
    pings = decode_pings(items, NOW, None, Bounds())
    assert not pings.accepted
    return [reject.code for reject in pings.rejected]


def form(query: str) -> list[Any]:
    return osmand_form(dict(parse_qsl(query, keep_blank_values=True)))


@pytest.mark.parametrize(
    ("message", "ping"),
    [
        (OWNTRACKS_BOOKLET, Ping(1, 1497476456000, 48.85833, 2.29513, None, None)),
        (OWNTRACKS_ANDROID, Ping(1, 1551874878000, 46.0681247, 11.1512805, None, 0.0)),
        (OWNTRACKS_IOS, Ping(1, 1497349316000, 48.85833, 2.29513, 271.0, 61 / 3.6)),
        (OWNTRACKS_TOPIC, Ping(1, 1736161169000, 37.0, -122.0, None, None)),
    ],
)
def test_owntracks_location(message: bytes, ping: Ping) -> None:
    """A wrong unit or name would put an OwnTracks vendor in the wrong place or time."""
    (found,) = decoded(owntracks(message))
    assert found[:5] == ping[:5]
    assert found.speed == (None if ping.speed is None else pytest.approx(ping.speed))


def test_owntracks_array() -> None:
    """A relay that posts several messages at once would lose all but one, or be refused for a waypoint among them."""
    body = b"[" + b",".join([OWNTRACKS_BOOKLET, b'{"_type":"lwt","tst":1}', OWNTRACKS_IOS]) + b"]"
    assert [ping.timestamp for ping in decoded(owntracks(body))] == [1497476456000, 1497349316000]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b" \n",
        b'{"_type":"lwt","tst":1497476456}',
        b'{"_type":"transition","wtst":1,"lat":1.0,"lon":2.0,"tst":2,"acc":3,"event":"enter"}',
        b'{"_type":"waypoint","desc":"Home","lat":48.8,"lon":2.2,"rad":50,"tst":1497476456}',
        b'{"_type":"cmd","action":"dump"}',
        b'{"_type":"status"}',
    ],
)
def test_owntracks_other_types(message: bytes) -> None:
    """An app whose waypoint or empty message was refused would try it forever, or tell its user of an error."""
    assert list(owntracks(message)) == []


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (b'{"_type":"encrypted","data":"6fW+"}', ErrorCode.INVALID_MESSAGE, "encryption key"),
        (b'{"lat":1.0,"lon":2.0}', ErrorCode.INVALID_MESSAGE, "_type"),
        (b"[1]", ErrorCode.INVALID_MESSAGE, "_type"),
        (b"{", ErrorCode.INVALID_JSON, "not JSON"),
    ],
)
def test_owntracks_refused(message: bytes, code: ErrorCode, says: str) -> None:
    """Otherwise a user whose app encrypts its messages would believe that positions arrive."""
    (refused,) = owntracks(message)
    assert isinstance(refused, ProtocolError)
    assert refused.code is code
    assert says in refused.message


@pytest.mark.parametrize(
    ("query", "timestamp", "lat", "long"),
    [
        ("id=902064&lat=42.06288&lon=-88.23412&timestamp=2016-01-27T18%3A55%3A47Z&hdop=6.0&altitude=224.0&speed=0.0",
         1453920947000, 42.06288, -88.23412),
        ("id=902064&lat=42.06288&lon=-88.23412&timestamp=1442068686579&hdop=6.0&altitude=224.0&speed=0.0",
         1442068686579, 42.06288, -88.23412),
        ("lat=49.60688&lon=6.15788&timestamp=2014-06-04+09%3A10%3A11&altitude=384.7&speed=0.0&id=353861053849681",
         1401873011000, 49.60688, 6.15788),
        ("id=1&lat=42.06288&lon=-88.23412&timestamp=2016-01-27T19:55:47.250+01:00", 1453920947250, 42.06288, -88.23412),
        ("id=123456&timestamp=1377177267&lat=60.0&lon=30.0", 1377177267000, 60.0, 30.0),
        ("id=123456&timestamp=1377177267&location=60.0,30.0", 1377177267000, 60.0, 30.0),
        ("lat=60.0&lon=30.0&speed=0.0&heading=0.0&vacc=0&hacc=0&altitude=0&deviceid=123456", NOW, 60.0, 30.0),
        ("id=861001000719969&lat=41.666667&lon=-0.883333&altitude=350.059479&speed=0.000000&batt=87",
         NOW, 41.666667, -0.883333),
    ],
)  # fmt: skip
def test_osmand_form(query: str, timestamp: int, lat: float, long: float) -> None:
    """Each documented form of time and position; one that is misread puts a vendor years or miles away."""
    (ping,) = decoded(form(query))
    assert ping[1:4] == (timestamp, lat, long)


@pytest.mark.parametrize(
    ("query", "speed"),
    [
        # Traccar Client for Android before 9.0: knots
        ("speed=40", 40 * 1852 / 3600),
        ("speed=40&speedUnit=kn", 40 * 1852 / 3600),
        # OsmAnd's {5} and GPSLogger's %SPD: metres per second
        ("speed=8.5&speedUnit=mps", 8.5),
        ("speed=36&speedUnit=kmh", 10.0),
        ("speed=-1", None),
        ("speed=nan", None),
        ("speed=", None),
        ("", None),
    ],
)
def test_osmand_speed(query: str, speed: float | None) -> None:
    """A speed in the wrong unit shows a parked truck racing."""
    (ping,) = decoded(form(f"id=1&lat=60.0&lon=30.0&bearing=7.19889788244&{query}"))
    assert ping.heading == pytest.approx(7.19889788244)
    assert ping.speed == (None if speed is None else pytest.approx(speed))


@pytest.mark.parametrize(
    "query",
    [
        "id=1&lat=0&lon=0&valid=false",
        "id=1&lat=0&lon=0&valid=0",
        "id=1&lat=52.1&lon=21.1&valid=FALSE",
        "id=1&lat=52.1&lon=21.1&valid=V",
        "id=1&lat=0&lon=0",
        "id=1&lat=0.0&lon=-0.0",
        "id=123456&timestamp=1377177267&cell=257,02,16,2224&cell=257,02,16,2223,-90&wifi=00-14-22-01-23-45,-80",
    ],
)
def test_osmand_without_a_position(query: str) -> None:
    """A tracker without a fix would be put on the map at 0, 0, or be refused and send the same forever."""
    assert codes(form(query)) == [ErrorCode.MISSING_FIELD]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("id=1&lat=60.0&lon=30.0&timestamp=yesterday", ErrorCode.INVALID_TIMESTAMP),
        ("id=1&lat=60.0&lon=30.0&timestamp=2014-06-04", ErrorCode.INVALID_TIMESTAMP),
        ("id=1&lat=60.0&lon=30.0&timestamp=nan", ErrorCode.INVALID_TIMESTAMP),
        ("id=1&lat=60.0&lon=30.0&timestamp=inf", ErrorCode.INVALID_TIMESTAMP),
        ("id=1&lat=60.0&lon=30.0&timestamp=", ErrorCode.INVALID_TIMESTAMP),
        ("id=1&lat=60.0&lon=30.0&timestamp=-5", ErrorCode.INVALID_TIMESTAMP),
        ("id=1&lat=60.0&lon=30.0&timestamp=1e30", ErrorCode.INVALID_TIMESTAMP),
        ("id=1&lat=60.0&lon=30.0&timestamp=2200000000", ErrorCode.TIMESTAMP_IN_FUTURE),
        ("id=1&lat=95&lon=30.0", ErrorCode.INVALID_COORDINATES),
        ("id=1&lat=nan&lon=30.0", ErrorCode.INVALID_COORDINATES),
        ("id=1&lat=6_0&lon=30.0", ErrorCode.INVALID_COORDINATES),
        ("id=1&lat={0}&lon={1}", ErrorCode.INVALID_COORDINATES),
        ("id=1&location=60.0", ErrorCode.INVALID_COORDINATES),
        ("id=1&lat=60.0", ErrorCode.MISSING_FIELD),
        ("id=1", ErrorCode.MISSING_FIELD),
        ("id=1&lat=60.0&lon=30.0&speedUnit=furlongs", ErrorCode.INVALID_MESSAGE),
    ],
)
def test_osmand_refused(query: str, code: ErrorCode) -> None:
    """A template that was typed in wrong would be answered as if its positions were stored."""
    assert codes(form(query)) == [code]


def test_tracker_json() -> None:
    """Traccar Client from 9.0: what it sends must be stored in its units, unknown heading and speed left out."""
    items, device_id = tracker_json(TRACCAR_CLIENT_9)
    assert decoded(items) == [Ping(1, 1749995112862, 37.4219983, -122.084, None, 0.0)]
    assert device_id == "48241179"
    items, device_id = tracker_json(TRACCAR_CLIENT_9_MOVING)
    assert decoded(items) == [Ping(1, 1626854794444, -6.1148096, 106.6837015, 63.0, 18.67)]
    assert device_id == "8737767034"


def test_tracker_json_batch() -> None:
    """The same location service in batch mode sends an array: none of it may be dropped."""
    one = orjson.loads(TRACCAR_CLIENT_9)["location"]
    two = orjson.loads(TRACCAR_CLIENT_9_MOVING)["location"]
    items, device_id = tracker_json(orjson.dumps({"location": [one, two]}))
    assert [ping.timestamp for ping in decoded(items)] == [1749995112862, 1626854794444]
    assert device_id is None


@pytest.mark.parametrize(
    "body", [b"{}", b"[[]]", b'{"location":null}', b'{"location":{}}', b'{"location":[1]}', b'{"location":', b"7"]
)
def test_tracker_json_refused(body: bytes) -> None:
    """What is no position must not be stored as one."""
    (code,) = codes(tracker_json(body)[0])
    assert code in (ErrorCode.MISSING_FIELD, ErrorCode.INVALID_JSON)


TAKEN = 1_732_467_540_000
PAGE = (ROOT / "docs" / "trackers.md").read_text(encoding="utf-8")
PAYLOADS = re.findall(r"^\| [^|]+ \| `([^|]+=[^|]+|[{\[][^|]+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads(payload: str) -> None:
    """Each app's form of the same position, as the page has it: misread, a vendor's whole day is lost."""
    items: Iterable[Any]
    if payload[0] not in "{[":
        items = form(payload)
    elif "_type" in payload:
        items = owntracks(payload.encode())
    else:
        items = tracker_json(payload.encode())[0]
    (ping,) = decode_pings(items, TAKEN, None, Bounds()).accepted
    assert ping[1:5] == (TAKEN, 52.2297, 21.0122, 90.0)
    assert ping.speed == pytest.approx(4.2, abs=0.05)
    assert is_overland(payload.encode()) == ("Feature" in payload)


def test_numbers_as_text() -> None:
    """A template that quotes its placeholders is what several apps have as their example."""
    coords = {"latitude": "52.2297", "longitude": "21.0122", "speed": "4.2", "heading": "90"}
    (ping,) = decoded(tracker_json(orjson.dumps({"location": {"coords": coords, "timestamp": "1732467540"}}))[0])
    assert ping == Ping(1, TAKEN, 52.2297, 21.0122, 90.0, 4.2)


@pytest.mark.parametrize(
    "time",
    [
        "2024-11-24T16:59:00Z",
        "2024-11-24t16:59:00z",
        "2024-11-24T16:59:00+00:00",
        "2024-11-24T16:59:00+0000",
        "2024-11-24T16:59:00 00:00",
        "2024-11-24 16:59:00+00",
        "2024-11-24T16:59Z",
        "20241124T165900Z",
        "20241124T175900+0100",
        "2024-11-24T11:59:00-0500",
        "2024-11-24T16:59:00",
        "2024-11-24 16:59:00",
        "2024-11-24T16:59:00,000",
        "2024-11-24T16:58:60Z",
        "1732467540",
        "1732467540.0",
        "1732467540000",
    ],
)
def test_times(time: str) -> None:
    """Phones write times in a dozen ways; one that is misread makes a position history, or hours too new."""
    (ping,) = decoded(form(f"lat=1&lon=2&timestamp={quote(time)}"))
    assert ping.timestamp == TAKEN


def test_an_element_costs_itself() -> None:
    """A batch with one entry without coordinates was refused whole, and sent again forever."""
    good = {"coords": {"latitude": 52.2297, "longitude": 21.0122}, "timestamp": TAKEN}
    items, _ = tracker_json(orjson.dumps({"location": [good, {}, 7, {**good, "timestamp": "yesterday"}, good]}))
    pings = decode_pings(items, NOW, None, Bounds(max_age_ms=NOW))
    assert [ping.seq for ping in pings.accepted] == [1, 5]
    assert [reject.code for reject in pings.rejected] == [
        ErrorCode.MISSING_FIELD,
        ErrorCode.MISSING_FIELD,
        ErrorCode.INVALID_TIMESTAMP,
    ]


def test_owntracks_at_the_other_path() -> None:
    """An app configured with the wrong one of two URLs must still be stored with its own time and speed."""
    (ping,) = decoded(tracker_json(OWNTRACKS_IOS)[0])
    assert (ping.timestamp, ping.heading) == (1497349316000, 271.0)
    assert len(decoded(tracker_json(b"[" + OWNTRACKS_IOS + b"," + OWNTRACKS_ANDROID + b"]")[0])) == 2


def test_members_that_are_no_locations() -> None:
    """A location that has a member with the name of a wrapper must not be taken for a wrapper."""
    body = {"latitude": 52.2297, "longitude": 21.0122, "data": {"note": "lunch"}, "location": "Main Street"}
    assert decoded(tracker_json(orjson.dumps(body))[0])[0][2:4] == (52.2297, 21.0122)


def test_the_device_of_overland() -> None:
    """Overland says in each location which device it is, and nowhere else."""
    one = {"type": "Feature", "geometry": {"coordinates": [21.0, 52.0]}, "properties": {"device_id": "truck"}}
    assert tracker_json(orjson.dumps({"locations": [one]}))[1] == "truck"


def test_gpslogger_of_home_assistant() -> None:
    """GPSLogger's template for Home Assistant has names of its own."""
    (ping,) = decoded(form("latitude=1.5&longitude=2.5&device=x&accuracy=8&speed=3&speedUnit=mps&direction=45"))
    assert ping[2:] == (1.5, 2.5, 45.0, 3.0)


def test_basic() -> None:
    """The token of an OwnTracks user is a password; one with a colon in it must stay whole."""
    header = "Basic " + b64encode(b"jane:a.b:c").decode()
    assert basic(header) == ("jane", "a.b:c")
    assert basic(header.replace("Basic", "basic")) == ("jane", "a.b:c")
    for other in ("", "Bearer x", "Basic", "Basic !", "Basic " + b64encode(b"jane").decode(), "Basic /w=="):
        assert basic(other) is None


def test_is_token() -> None:
    """A device number that is taken for a token would lock the app out."""
    assert is_token("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1In0.c2ln")
    assert not any(map(is_token, (None, "", "48241179", "eyJ", "a.b.c")))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["_type", "lat", "lon", "tst", "vel", "cog", "location", "coords", "timestamp", "latitude"])


@given(st.dictionaries(keys, json_values, max_size=6), st.booleans())
def test_any_json_is_pings_or_a_refusal(body: dict[str, Any], located: bool) -> None:
    """Whatever an app sends must not end in an error of ours, which it would answer by sending it again."""
    if located:
        body |= {"_type": "location", "location": {"coords": body}}
    try:
        data = orjson.dumps(body)
    except orjson.JSONEncodeError:
        return
    for decode in (owntracks, lambda data: tracker_json(data)[0]):
        with suppress(ProtocolError):
            decode_pings(decode(data), NOW, None, Bounds())


@given(
    st.dictionaries(
        st.sampled_from(
            ["id", "lat", "lon", "location", "timestamp", "speed", "bearing", "valid", "speedUnit", "cell"]
        ),
        st.text(max_size=12) | st.floats().map(str) | st.integers().map(str) | st.datetimes().map(str),
    )
)
def test_any_form_is_a_ping_or_a_refusal(parameters: dict[str, str]) -> None:
    """As above, for the OsmAnd protocol's form."""
    with suppress(ProtocolError):
        decode_pings(osmand_form(parameters), NOW, None, Bounds())
