"""What is fuzzed: each target takes any bytes, and raises when a rule is broken that must hold for all of them.

The same targets run under hypothesis in every test run, and under atheris, guided by coverage, in `make fuzz`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

import orjson

from streamer.accounts.tokens import Authenticator
from streamer.counters import Counters
from streamer.errors import Disconnect, FrameError, ProtocolError
from streamer.geo.grid import bus_cover, cover, cover_level
from streamer.ingest.session import Pending, VendorSession
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Presence
from streamer.live.view import ViewKey
from streamer.operations.logs import masked
from streamer.protocol import fields, history, messages, trackers
from streamer.protocol.bounds import Bounds
from streamer.protocol.frames import FrameReader
from streamer.transport import http_ingest
from streamer.transport.client_address import client_address
from streamer.transport.cors import allowed_origin
from tests.support.frames import CLOSE, CONTINUATION, PING, TEXT, compressed, frame

NOW = 1_732_467_600_000
BOUNDS = Bounds()
MAX_MESSAGE = 1000
MOST_CELLS = 2000
"""Cells that the cover of an area within bounds may have."""
TALLY = Counters()
AUTHENTICATOR = Authenticator(["a secret that is long enough to be one"])


def vendor(data: bytes) -> None:
    """A vendor app's messages, a line each: every ping is acked or rejected once, acks rise, nothing else is raised."""
    session = VendorSession(BOUNDS, live_max_age=600_000, max_bad_messages=50, counters=TALLY)
    order = random.Random(len(data))
    waiting: list[Pending] = []
    answered: list[int] = []
    acked: list[int] = []

    def take(replies: Any) -> None:
        for reply in replies:
            message = orjson.loads(reply)
            if message["type"] == "reject":
                answered.append(message["seq"])
            elif message["type"] == "ack":
                acked.append(message["seq"])
            assert message["type"] in ("ack", "reject", "error")
            assert len(reply) < 2000, "an answer must not grow with what was sent"

    for line in data.split(b"\n")[:30]:
        try:
            received = session.receive(line, NOW)
        except Disconnect as closing:
            orjson.loads(messages.encode_error(closing.code, closing.message))
            return
        take(received.replies)
        for ping in received.pings:
            assert 0 <= ping.timestamp <= NOW + BOUNDS.future_tolerance_ms
            assert abs(ping.lat) <= 90
            assert abs(ping.long) <= 180
            answered.append(ping.seq)
        if received.pending is not None:
            waiting.append(received.pending)
        if waiting and order.random() < 0.5:
            take(session.settled(waiting.pop(order.randrange(len(waiting)))))
    while waiting:
        take(session.settled(waiting.pop()))
    assert len(set(answered)) == len(answered), "one answer for each"
    assert acked == sorted(set(acked))
    if answered:
        assert acked[-1] == session.last_seq == max(answered)
    assert session.unsettled == 0


def watch(data: bytes) -> None:
    """A customer app's message: an area within bounds is covered by few cells and shows exactly the vendors inside."""
    try:
        message = messages.decode_watch(data, BOUNDS)
    except ProtocolError as wrong:
        orjson.loads(messages.encode_error(wrong.code, wrong.message, messages.named(data)))
        return
    if type(message) is not messages.Watch:
        return
    index = LiveIndex("me")
    key = ViewKey(message.area, message.vendors, message.open)
    somewhere = random.Random(data)
    positions = [(somewhere.uniform(-90, 90), somewhere.uniform(-180, 180)) for _ in range(8)]
    area = message.area
    if area is not None:
        assert max(area.extent()) <= max(BOUNDS.max_extent, 2 * BOUNDS.max_radius) * 1.01
        covered = cover(area, cover_level(area))
        assert len(covered.full) + len(covered.boundary) <= MOST_CELLS
        assert len(bus_cover(area)) <= MOST_CELLS
        body = orjson.loads(data)["area"]
        for corner in [body.get("center"), body.get("ne"), body.get("sw"), *(body.get("polygon") or ())][:30]:
            if type(corner) is list:
                positions.append(fields.coordinates(corner[1], corner[0], wrap=True))
            elif corner is not None:
                positions.append(fields.position(corner, wrap=True))
    ids = sorted(message.vendors or ())[:5] + [f"v{number}" for number in range(len(positions))]
    for id, (lat, long) in zip(ids, positions, strict=False):
        index.put_card(id, Card(NOW, id, True, None), NOW)
        index.put_presence(id, Presence(NOW, "me", 0), NOW)
        index.put_fix(id, Fix(NOW, lat, long), NOW)
    expected = {
        vendor.vendor_id
        for vendor in index.vendors.values()
        if (
            area.contains(vendor.fix.lat, vendor.fix.long)
            if area is not None
            else vendor.vendor_id in (message.vendors or ())
        )
    }
    found, rest = index.members(key)
    assert {vendor.vendor_id for vendor in (*found, *filter(key.holds, rest))} == expected


def http(data: bytes) -> None:
    """Bodies, query strings and headers: understood, or refused with a code."""
    kind, _, rest = data.partition(b"\n")
    text = rest.decode("utf-8", "replace")
    query = dict(parse_qsl(text, keep_blank_values=True))
    items: list[Any] = []
    for part in PARTS.get(kind[:1], PARTS[b"p"]):
        with suppress(ProtocolError):
            items += part(rest, text, query) or []
    with suppress(ProtocolError):
        for ping in messages.decode_pings(items[:500], NOW, None, BOUNDS).accepted:
            assert abs(ping.lat) <= 90
            assert abs(ping.long) <= 180


def frames(data: bytes) -> None:
    """A client's bytes: messages, control frames or one violation, the same however the network cuts them; bounded."""
    deflate = len(data) % 2 == 1
    whole = _read([data], deflate)
    cut = random.Random(data)
    at = sorted(cut.randrange(len(data) + 1) for _ in range(5))
    assert _read([data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)], deflate) == whole


def _read(pieces: list[bytes], deflate: bool) -> list[tuple[int, bytes]]:
    reader, found = FrameReader(MAX_MESSAGE, deflate=deflate), list[tuple[int, bytes]]()
    try:
        for piece in pieces:
            reader.feed(piece)
            while (got := reader.next()) is not None:
                assert len(got[1]) <= MAX_MESSAGE
                if got[0] == TEXT:
                    got[1].decode()
                found.append(got)
    except FrameError as broken:
        found.append((int(broken.close), b""))
    return found


def _range(_: bytes, text: str, query: dict[str, str]) -> None:
    asked = history.decode_range(query, NOW, 60_000)
    assert 1 <= asked.limit <= history.MAX_LIMIT
    if asked.after is not None:
        assert history.decode_cursor(history.encode_cursor(*asked.after)) == asked.after


def _headers(rest: bytes, text: str, query: dict[str, str]) -> None:
    history.negotiate(text)
    trackers.basic(text)
    client_address(text, text.split("|"), len(text) % 4)
    allowed_origin(text, "x.example", ("https://a.example",))
    assert type(masked(None, "info", text)) is str


def _token(_: bytes, text: str, __: dict[str, str]) -> None:
    checking: Coroutine[Any, Any, object] = AUTHENTICATOR.check(text)
    with suppress(StopIteration):
        checking.send(None)
        raise AssertionError("a check without an issuer waits for nothing")


Part = Callable[[bytes, str, dict[str, str]], "list[Any] | None"]
PARTS: dict[bytes, tuple[Part, ...]] = {
    b"p": (lambda rest, text, query: http_ingest.ping_items(rest),),
    b"o": (lambda rest, text, query: list(trackers.owntracks(rest)),),
    b"j": (lambda rest, text, query: list(trackers.tracker_json(rest)[0]),),
    b"f": (lambda rest, text, query: trackers.osmand_form(http_ingest.form_of(rest)),),
    b"r": (_range,),
    b"h": (_headers,),
    b"t": (_token,),
}

TARGETS: dict[str, Callable[[bytes], None]] = {"vendor": vendor, "watch": watch, "http": http, "frames": frames}

_PING = b'{"type":"ping","seq":7,"lat":52.23,"long":21.01,"timestamp":1732467600000,"heading":90,"speed":4.2}'
SEEDS: dict[str, tuple[bytes, ...]] = {
    "vendor": (
        _PING,
        b'{"latitude":52.23,"lng":21.01,"timestamp":"2024-11-24T17:00:00Z"}\n{"lat":-90,"lon":180}',
        b'{"type":"pings","pings":[{"lat":1,"long":2,"seq":1},{"lat":91,"long":2},7,{"lat":3,"longitude":4,"seq":9}]}',
        b'{"type":"status","open":true}\n{"type":"auth","token":"a.b.c"}\n' + _PING + b"\n{}\n[]\n" + _PING,
    ),
    "watch": (
        b'{"type":"watch","id":"w","area":{"center":{"lat":52.2,"long":21},"radius":5000},"open":true,"interval":500}',
        b'{"type":"watch","id":"w","area":{"center":{"lat":89.9,"long":179.9},"radius":99999}}',
        b'{"type":"watch","id":"w","area":{"ne":{"lat":1,"long":-179.5},"sw":{"lat":0,"long":179.5}}}',
        b'{"type":"watch","id":"w","area":{"ne":{"lat":90,"long":180},"sw":{"lat":89.5,"long":-180}}}',
        b'{"type":"watch","id":"w","area":{"polygon":[[21,52],[21.5,52],[21.5,52.5],[21.2,52.1],[21,52]]}}',
        b'{"type":"watch","id":"w","area":{"polygon":[[179.9,0],[-179.9,0],[-179.9,0.2],[179.9,0.2]]}}',
        b'{"type":"watch","id":"w","vendors":["a","b","v1"]}',
        b'{"type":"unwatch","id":"w"}',
        b'{"type":"auth","token":"x"}',
    ),
    "frames": (
        frame(_PING, mask=b"mask") + frame(b"", PING, mask=b"mask"),
        frame(_PING[:40], fin=False, mask=b"mask") + frame(_PING[40:], CONTINUATION, mask=bytes(4)),
        frame(compressed(_PING), rsv=4, mask=b"\0\0\0\1"),
        frame(b"\x03\xe8bye", CLOSE, mask=b"mask"),
    ),
    "http": (
        b"p\n[" + _PING + b"," + _PING + b"]",
        b'p\n{"pings":[' + _PING + b"]}",
        b'o\n{"_type":"location","lat":52.1,"lon":21.2,"tst":1732467600,"vel":12,"cog":90}',
        b'j\n{"location":{"timestamp":"2024-11-24T17:00:00Z","coords":{"latitude":1,"longitude":2}},"device_id":"x"}',
        b"f\nid=1&lat=52.1&lon=21&timestamp=1732467600&speed=5&bearing=90&valid=true&location=1,2&speedUnit=mph",
        b"r\nfrom=2024-11-24T00:00:00Z&to=1732467600000&limit=5&cursor=MTczMjQ2NzYwMDAwMC5jbTN4",
        b"h\napplication/geo+json;q=0.5, text/*;q=0, */*",
        b"h\nBasic dXNlcjpwYXNz",
        b"h\n[2001:db8::1]:80|10.0.0.1, 6.6.6.6",
        b"t\neyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ1IiwiZXhwIjo5OTk5OTk5OTk5fQ.AAAA",
    ),
}
