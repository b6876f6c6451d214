"""History as it is asked for and answered: ranges, cursors, formats."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from base64 import urlsafe_b64encode
from contextlib import suppress
from datetime import datetime
from urllib.parse import parse_qsl

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.history import (
    DAY_MS,
    LATEST_MS,
    Format,
    LocationRow,
    Range,
    cut,
    decode_cursor,
    decode_range,
    encode,
    encode_cursor,
    encode_rows,
    negotiate,
    rfc3339,
)

NOW = 1_732_467_600_000
TOLERANCE = 60_000

rows = st.lists(
    st.builds(
        LocationRow,
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=25),
        st.integers(0, LATEST_MS - 1),
        st.floats(-90, 90),
        st.floats(-180, 180),
    ),
    max_size=5,
)


def test_range_by_default() -> None:
    """Without bounds: the last 24 h, and what a phone with a fast clock has stored ahead of now."""
    assert decode_range({}, NOW, TOLERANCE) == Range(NOW - DAY_MS, NOW + TOLERANCE + 1, 1000, None)


@pytest.mark.parametrize(
    ("query", "from_ms", "to_ms"),
    [
        ("from=1732460000000", 1732460000000, NOW + TOLERANCE + 1),
        ("to=1732460000000", 1732460000000 - DAY_MS, 1732460000000),
        ("to=1000", 0, 1000),
        ("from=2024-11-24T00:00:00Z&to=2024-11-24T01:00:00.500%2B01:00", 1732406400000, 1732406400500),
        ("from=2024-11-24T00:00:00+01:00&to=2024-11-24T00:00:00Z", 1732402800000, 1732406400000),
        ("from=0&to=253402300800000", 0, LATEST_MS),
    ],
)
def test_range(query: str, from_ms: int, to_ms: int) -> None:
    """Epoch milliseconds and RFC 3339, a plus sign escaped or not; a day read wrongly is a day not found."""
    asked = decode_range(dict(parse_qsl(query)), NOW, TOLERANCE)
    assert (asked.from_ms, asked.to_ms) == (from_ms, to_ms)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("from=yesterday", ErrorCode.INVALID_TIMESTAMP),
        ("from=2024-11-24", ErrorCode.INVALID_TIMESTAMP),
        ("from=2024-11-24T00:00:00", ErrorCode.INVALID_TIMESTAMP),
        ("to=-1", ErrorCode.INVALID_TIMESTAMP),
        ("to=999999999999999", ErrorCode.INVALID_TIMESTAMP),
        ("from=", ErrorCode.INVALID_TIMESTAMP),
        ("from=2000&to=1000", ErrorCode.INVALID_TIMESTAMP),
        ("limit=0", ErrorCode.INVALID_MESSAGE),
        ("limit=10001", ErrorCode.INVALID_MESSAGE),
        ("limit=ten", ErrorCode.INVALID_MESSAGE),
        ("limit=1.5", ErrorCode.INVALID_MESSAGE),
        ("cursor=", ErrorCode.INVALID_MESSAGE),
        ("cursor=12", ErrorCode.INVALID_MESSAGE),
    ],
)
def test_range_refused(query: str, code: ErrorCode) -> None:
    """A range that is not understood must not be answered with another range's history."""
    with pytest.raises(ProtocolError) as refused:
        decode_range(dict(parse_qsl(query, keep_blank_values=True)), NOW, TOLERANCE)
    assert refused.value.code is code


@given(st.integers(0, LATEST_MS), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_cursor(timestamp: int, id: str) -> None:
    """A page must begin where the one before ended, whatever an id is that another service wrote."""
    assert decode_cursor(encode_cursor(timestamp, id)) == (timestamp, id)


@given(st.text(max_size=40) | st.binary(max_size=30).map(lambda raw: urlsafe_b64encode(raw).decode()))
def test_any_text_is_a_cursor_or_a_refusal(text: str) -> None:
    """A cursor that was cut or made up is refused, and never an error of ours."""
    with suppress(ProtocolError):
        assert encode_cursor(*decode_cursor(text)) == text


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.JSON),
        ("*/*", Format.JSON),
        ("application/*", Format.JSON),
        ("application/json", Format.JSON),
        ("application/gpx+xml", Format.GPX),
        ("APPLICATION/GEO+JSON", Format.GEOJSON),
        ("application/json;q=0.2, application/geo+json;q=0.9, application/gpx+xml;q=0.5", Format.GEOJSON),
        ("application/gpx+xml, application/geo+json", Format.GEOJSON),
        ("application/gpx+xml, */*;q=0.1", Format.GPX),
        ("*/*, application/json;q=0", Format.GEOJSON),
        ("application/json;q=0.5, */*", Format.GEOJSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format.JSON),
        ("application/json; charset=utf-8; q=1.000", Format.JSON),
        ("text/csv", None),
        ("application/json;q=0", None),
        ("application/json;q=much", None),
        ("*/*;q=0", None),
        ("application/json;q=0, application/*;q=0.3", Format.GEOJSON),
    ],
)
def test_negotiate(accept: str, form: Format | None) -> None:
    """A GPX tool must get GPX and not JSON, and a browser must not get 406."""
    assert negotiate(accept) is form


@given(st.text(st.sampled_from("q=;,.01 */\x1f\t\xa0apliction/json")))
@example("text/html;q=\x1f0.5")
def test_negotiate_with_anything(accept: str) -> None:
    """A header that is no header must not be a 500."""
    assert negotiate(accept) in (None, *Format)


@given(rows, st.integers(1, 6))
def test_cut(found: list[LocationRow], limit: int) -> None:
    """The last page has no next; every other one's next is its last row."""
    page, cursor = cut(found, limit)
    assert list(page) == found[:limit]
    assert (cursor is None) == (len(found) <= limit)
    if cursor is not None:
        assert decode_cursor(cursor) == (found[limit - 1].timestamp, found[limit - 1].id)


def test_next_query() -> None:
    """The next page is of the same range, though `now` has moved on."""
    asked = decode_range({"limit": "7"}, NOW, TOLERANCE)
    again = decode_range(dict(parse_qsl(asked.next_query(encode_cursor(5, "c+&/")))), NOW + 5000, TOLERANCE)
    assert again == Range(asked.from_ms, asked.to_ms, 7, (5, "c+&/"))


def page(form: Format, name: str, found: list[LocationRow], cursor: str | None) -> bytes:
    """A page, encoded in slices of two rows as the server does with more."""
    slices = [encode_rows(form, "v1", found[start : start + 2]) for start in range(0, len(found), 2)]
    return encode(form, "v1", name, slices, cursor)


def test_json() -> None:
    """The body that our own clients read, member by member."""
    body = page(Format.JSON, "Taco", [LocationRow("c1", 1000, 52.5, 21.25)], "abc")
    assert orjson.loads(body) == {
        "vendorId": "v1",
        "locations": [{"id": "c1", "lat": 52.5, "long": 21.25, "timestamp": 1000}],
        "next": "abc",
    }


def test_geojson() -> None:
    """GeoJSON is longitude first: the other way round a track lies in another country."""
    body = orjson.loads(page(Format.GEOJSON, "Taco", [LocationRow("c1", 1732467600123, 52.5, 21.25)], None))
    assert body["type"] == "FeatureCollection"
    (feature,) = body["features"]
    assert feature == {
        "type": "Feature",
        "id": "c1",
        "geometry": {"type": "Point", "coordinates": [21.25, 52.5]},
        "properties": {"vendorId": "v1", "timestamp": 1732467600123, "time": "2024-11-24T17:00:00.123Z"},
    }


@given(st.text(), rows)
def test_gpx(name: str, found: list[LocationRow]) -> None:
    """A name with markup, or a coordinate like 1e-07, must not make a file that no GPX tool opens."""
    namespace = "{http://www.topografix.com/GPX/1/1}"
    root = ET.fromstring(page(Format.GPX, name, found, None))
    assert (root.tag, root.get("version")) == (f"{namespace}gpx", "1.1")
    points = root.findall(f"{namespace}trk/{namespace}trkseg/{namespace}trkpt")
    assert len(points) == len(found)
    for point, row in zip(points, found, strict=True):
        lat, lon = point.get("lat", ""), point.get("lon", "")
        assert "e" not in (lat + lon).lower()
        assert float(lat) == row.lat
        assert float(lon) == (-180.0 if row.long == 180 else row.long)
        assert point.findtext(f"{namespace}time") == rfc3339(row.timestamp)


@given(st.integers(0, LATEST_MS - 1))
def test_rfc3339(timestamp: int) -> None:
    """Times of an export are those that were stored, to the millisecond."""
    moment = datetime.fromisoformat(rfc3339(timestamp))
    assert round(moment.timestamp() * 1000) == timestamp
