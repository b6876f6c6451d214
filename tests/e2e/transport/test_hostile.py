"""Messages that no correct client sends: they get a documented error or a close, and don't affect other clients."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from yarl import URL

from streamer.accounts.tokens import make_token
from streamer.errors import ErrorCode
from streamer.storage.seed import SeededVendor
from tests.conftest import Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually
from tests.support.frames import CLOSE, CONTINUATION, PING, PONG, TEXT, frame

LAT, LONG = 52.2297, 21.0122
CODES = frozenset(code.value for code in ErrorCode)


@pytest.fixture
async def running(
    serve: Serve, vendors: list[SeededVendor], caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Running]:
    """A server that is checked to serve a vendor and a customer before and after the test."""
    server = await serve(max_bad_messages=1_000_000, vendor_messages=1e6, watch_messages=1e6)
    async with VendorApp(server.url, vendors[1].clerk_id) as vendor, CustomerApp(server.url) as customer:
        await customer.watch("w", circle(LAT, LONG, 5000))
        await vendor.ping(LAT, LONG)
        await customer.sees("w", {vendors[1].vendor_id: (LAT, LONG)})
        yield server
        await vendor.ping(LAT + 0.01, LONG)
        view = customer.views["w"]
        await eventually(lambda: view[vendors[1].vendor_id]["lat"] == LAT + 0.01, "the good vendor's next step")
    await eventually(lambda: not server.server.connections, "every connection gone")
    assert not server.server.supervisor.deaths
    raised = [record.getMessage() for record in caplog.records if record.name == "aiohttp.server" and record.exc_info]
    assert not [line for line in raised if "Unhandled" in line], raised


class RawSocket:
    """A raw WebSocket: bytes are sent unchanged."""

    def __init__(self, url: str, path: str, token: str | None = None) -> None:
        self._parts = urlsplit(url)
        self._path = path + (f"?token={token}" if token else "")

    async def __aenter__(self) -> RawSocket:
        self.reader, self.writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        key = base64.b64encode(os.urandom(16)).decode()
        self.writer.write(
            f"GET {self._path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in await self.reader.readuntil(b"\r\n\r\n")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def read(self) -> tuple[int, bytes] | None:
        """Returns the opcode and payload of the server's next frame; None at the end."""
        try:
            async with asyncio.timeout(10):
                head = await self.reader.readexactly(2)
                size = head[1] & 0x7F
                if size == 126:
                    (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
                return head[0] & 0x0F, await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def message(self, kind: str) -> dict[str, Any]:
        """Returns the next message of a type."""
        while (got := await self.read()) is not None:
            if got[0] == TEXT:
                message: dict[str, Any] = orjson.loads(got[1])
                if message["type"] == kind:
                    return message
        raise AssertionError(f"the end instead of {kind}")

    async def ended(self) -> int | None:
        """Waits until the server ends the connection; returns the close code, None if there was none."""
        while (got := await self.read()) is not None:
            if got[0] == CLOSE:
                return int(struct.unpack("!H", got[1][:2])[0]) if len(got[1]) >= 2 else 1005
        return None


HUGE = bytes((0x81, 0xFF)) + struct.pack("!Q", 2**62) + b"mask"
BEYOND = bytes((0x81, 0xFF)) + struct.pack("!Q", 2**64 - 1) + b"mask"
BROKEN: dict[str, bytes] = {
    "reserved bits": frame(b"{}", rsv=1),
    "all reserved bits": frame(b"{}", rsv=7),
    "reserved opcode": frame(b"{}", 3),
    "reserved control opcode": frame(b"", 11),
    "long control frame": frame(b"x" * 126, PING),
    "fragmented control frame": frame(b"x", PING, fin=False),
    "continuation of nothing": frame(b"x", CONTINUATION),
    "text within a text": frame(b"{", fin=False) + frame(b"{}"),
    "a length of 2^62": HUGE,
    "a length of 2^64 - 1": BEYOND,
    "a close of one byte": frame(b"\x03", CLOSE),
    "a close code that is none": frame(struct.pack("!H", 1005), CLOSE),
    "a close code of 0": frame(struct.pack("!H", 0), CLOSE),
    "a close reason that is no UTF-8": frame(struct.pack("!H", 1000) + b"\xff\xfe", CLOSE),
    "packed text": frame(b"\xaaV*\xa9,HU\xb2RJ\x04\x00", rsv=4),
    "HTTP again": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    "noise": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("path", ["/v1/vendor", "/v1/watch"])
async def test_broken_frames(running: Running, vendors: list[SeededVendor], path: str) -> None:
    """An invalid WebSocket frame ends only its connection."""
    token = make_token(SECRET, vendors[0].clerk_id, 600)
    for name, data in BROKEN.items():
        async with RawSocket(running.url, path, token) as socket:
            socket.writer.write(data)
            code = await socket.ended()
            assert code in (None, 1000, 1002, 1003, 1005, 1007, 1009), f"{name}: {code}"


async def test_many_small_fragments(running: Running, vendors: list[SeededVendor]) -> None:
    """The size limit applies to the whole of a fragmented message; one within the limit is accepted."""
    token = make_token(SECRET, vendors[0].clerk_id, 600)
    async with RawSocket(running.url, "/v1/vendor", token) as socket:
        await socket.message("hello")
        text = b'{"lat":52.2,"long":21,"seq":3}'
        pieces = [frame(text[:1], fin=False)]
        pieces += [frame(bytes((byte,)), CONTINUATION, fin=False) for byte in text[1:]]
        pieces.insert(5, frame(b"hi", PING))  # a ping may be in between
        socket.writer.write(b"".join(pieces) + frame(b"", CONTINUATION))
        assert (await socket.message("ack"))["seq"] == 3
        socket.writer.write(frame(b"{", fin=False))
        with suppress(ConnectionError):
            for _ in range(100):
                socket.writer.write(frame(b" " * 1000, CONTINUATION, fin=False))
                await socket.writer.drain()
        assert await socket.ended() in (1009, None)


async def test_endless_empty_fragments(running: Running) -> None:
    """An endless series of empty fragments must use up neither memory nor the event loop."""
    async with RawSocket(running.url, "/v1/watch") as socket:
        socket.writer.write(frame(b"", fin=False))
        for _ in range(200):
            socket.writer.write(frame(b"", CONTINUATION, fin=False) * 200)
            await socket.writer.drain()
        async with CustomerApp(running.url) as customer:
            await customer.watch("w", circle(LAT, LONG, 100))


async def test_a_flood_of_pings(running: Running) -> None:
    """During ten thousand WebSocket pings, answered or not, other clients are served."""
    async with RawSocket(running.url, "/v1/watch") as socket:
        for _ in range(100):
            socket.writer.write(frame(b"x" * 125, PING) * 100)
            await socket.writer.drain()
        async with CustomerApp(running.url) as customer:
            await customer.watch("w", circle(LAT, LONG, 100))
        assert await socket.read() == (PONG, b"x" * 125)


async def test_a_half_closed_connection(running: Running, vendors: list[SeededVendor]) -> None:
    """A client that closes its half of the TCP connection without a close frame counts as disconnected."""
    token = make_token(SECRET, vendors[0].clerk_id, 600)
    for path in ("/v1/vendor", "/v1/watch"):
        for last in (b"", frame(b'{"lat":1,"long"')[:9], frame(b'{"lat":52.2,"long":21}')):
            async with RawSocket(running.url, path, token) as socket:
                socket.writer.write(last)
                socket.writer.write_eof()
                await socket.ended()
            await eventually(lambda: len(running.server.connections) == 2, "only the two good ones left")


async def test_unmasked_frames(running: Running) -> None:
    """A client that does not mask may be served or closed, but must not affect others."""
    async with RawSocket(running.url, "/v1/watch") as socket:
        socket.writer.write(frame(b'{"type":"watch"}', masked=False))
        got = await socket.read()
        assert got is None or got[0] in (TEXT, CLOSE)


DEEP = b"[" * 30_000
J, M, F = "ERR_INVALID_JSON", "ERR_INVALID_MESSAGE", "ERR_MISSING_FIELD"
C, T, A, L = "ERR_INVALID_COORDINATES", "ERR_INVALID_TIMESTAMP", "ERR_INVALID_AREA", "ERR_AREA_TOO_LARGE"
PINGS: list[tuple[bytes, str | None]] = [
    (b"", J),
    (b"\xff\xfe", J),
    (b'{"lat":52,"long":21,"x":"\xc3\x28"}', J),
    (b'{"lat":52,"long":21,"x":"\\ud800"}', J),
    (b"\xef\xbb\xbf{}", J),
    (DEEP, J),
    (b'{"a":' * 10_000, J),
    (b'{"lat":' + DEEP + b"]" * 30_000 + b',"long":21}', J),
    (b"{}" * 2, J),
    (b"{'lat':52}", J),
    (b"null", M),
    (b"[]", M),
    (b'"ping"', M),
    (b"{}", F),
    (b'{"lat":52}', F),
    (b'{"lat":null,"long":null}', F),
    (b'{"lat":NaN,"long":21}', J),
    (b'{"lat":Infinity,"long":21}', J),
    (b'{"lat":-Infinity,"long":21}', J),
    (b'{"lat":1e400,"long":21}', J),
    (b'{"lat":1e308,"long":21}', C),
    (b'{"lat":true,"long":21}', C),
    (b'{"lat":52,"long":false}', C),
    (b'{"lat":"52","long":21}', C),
    (b'{"lat":[52],"long":21}', C),
    (b'{"lat":{"lat":52},"long":21}', C),
    (b'{"lat":90.0000001,"long":21}', C),
    (b'{"lat":52,"long":-180.0000001}', C),
    (b'{"lat":' + b"9" * 400 + b',"long":21}', J),
    (b'{"lat":-' + b"9" * 25 + b',"long":21}', C),
    (b'{"lat":52,"long":21,"timestamp":true}', T),
    (b'{"lat":52,"long":21,"timestamp":-1}', T),
    (b'{"lat":52,"long":21,"timestamp":1e300}', T),
    (b'{"lat":52,"long":21,"timestamp":' + b"9" * 30 + b"}", T),
    (b'{"lat":52,"long":21,"timestamp":"yesterday"}', T),
    (b'{"lat":52,"long":21,"timestamp":"0000-00-00T00:00:00Z"}', T),
    (b'{"lat":52,"long":21,"timestamp":"9999-12-31T23:59:59.999999999999Z"}', T),
    (b'{"lat":52,"long":21,"timestamp":[]}', T),
    (b'{"lat":52,"long":21,"timestamp":2524608000000}', "ERR_TIMESTAMP_IN_FUTURE"),
    (b'{"lat":52,"long":21,"seq":true}', M),
    (b'{"lat":52,"long":21,"seq":1.5}', M),
    (b'{"lat":52,"long":21,"seq":"1"}', M),
    (b'{"lat":52,"long":21,"seq":9007199254740992}', M),
    (b'{"lat":52,"long":21,"seq":' + b"9" * 40 + b"}", M),
    (b'{"type":"pings","pings":{}}', M),
    (b'{"type":"pings"}', F),
    (b'{"type":"pings","pings":[' + b"0," * 500 + b"0]}", M),
    (b'{"type":"status","open":1}', M),
    (b'{"type":"status","open":"true"}', M),
    (b'{"type":"status"}', F),
    (b'{"type":["ping"]}', M),
    (b'{"type":{}}', M),
    (b'{"type":"' + b"p" * 50_000 + b'"}', M),
    (b'{"lat":91,"lat":52,"long":21}', None),  # of duplicate names the last one is used, as in browsers
    (b'{"lat":-0.0,"long":180,"heading":true,"speed":"fast","accuracy":{}}', None),
    (b'{"lat":52,"long":21,"__proto__":{"x":1},"constructor":null}', None),
    (b'{"lat":52,"long":21,' + b",".join(b'"k%d":%d' % (n, n) for n in range(5000)) + b"}", None),
]
CORNERS = b"[[0,0],[0,1],[1,1]]"
WATCHES: list[tuple[bytes, str | None]] = [
    *((data, code) for data, code in PINGS[:13]),
    (b"{}", F),
    (b'{"type":"watch"}', F),
    (b'{"type":"watch","id":7,"vendors":[]}', M),
    (b'{"type":"watch","id":"","vendors":[]}', M),
    (b'{"type":"watch","id":"%s","vendors":[]}' % (b"x" * 129), M),
    (b'{"type":"watch","id":"h"}', F),
    (b'{"type":"watch","id":"h","area":7}', A),
    (b'{"type":"watch","id":"h","area":{}}', A),
    (b'{"type":"watch","id":"h","area":{"center":{"lat":52,"long":21}}}', F),
    (b'{"type":"watch","id":"h","area":{"center":{"lat":52,"long":21},"radius":true}}', A),
    (b'{"type":"watch","id":"h","area":{"center":{"lat":52,"long":21},"radius":-1}}', A),
    (b'{"type":"watch","id":"h","area":{"center":{"lat":52,"long":21},"radius":1e308}}', L),
    (b'{"type":"watch","id":"h","area":{"center":{"lat":52,"long":21},"radius":' + b"9" * 300 + b"}}", L),
    (b'{"type":"watch","id":"h","area":{"center":{"lat":true,"long":21},"radius":1}}', C),
    (b'{"type":"watch","id":"h","area":{"ne":{"lat":1,"long":1},"sw":{"lat":2,"long":0}}}', A),
    (b'{"type":"watch","id":"h","area":{"ne":{"lat":90,"long":180},"sw":{"lat":-90,"long":-180}}}', L),
    (b'{"type":"watch","id":"h","area":{"ne":{"lat":1,"long":1}}}', A),
    (b'{"type":"watch","id":"h","area":{"polygon":[]}}', A),
    (b'{"type":"watch","id":"h","area":{"polygon":[[0,0],[0,0],[0,0],[0,0]]}}', None),
    (b'{"type":"watch","id":"h","area":{"polygon":[[0,0],[0,1],[true,1]]}}', C),
    (b'{"type":"watch","id":"h","area":{"polygon":[0,0,0]}}', A),
    (b'{"type":"watch","id":"h","area":{"polygon":[' + b"[0,0]," * 5000 + b"[0,0]]}}", L),
    (b'{"type":"watch","id":"h","area":{"polygon":' + CORNERS + b'},"vendors":["a"]}', M),
    (b'{"type":"watch","id":"h","area":{"polygon":[[0,0],[0,0.1],[0.1,0.1]]},"interval":true}', M),
    (b'{"type":"watch","id":"h","area":{"polygon":[[0,0],[0,0.1],[0.1,0.1]]},"interval":1e400}', J),
    (b'{"type":"watch","id":"h","area":{"polygon":[[0,0],[0,0.1],[0.1,0.1]]},"open":1}', M),
    (b'{"type":"watch","id":"h","vendors":"abc"}', M),
    (b'{"type":"watch","id":"h","vendors":[7]}', M),
    (b'{"type":"watch","id":"h","vendors":[""]}', M),
    (b'{"type":"watch","id":"h","vendors":["%s"]}' % b'","'.join(b"%d" % n for n in range(201)), L),
    (b'{"type":"watch","id":"h","vendors":["\\u0000","\\n","\\u202e"]}', None),
    (b'{"type":"unwatch","id":"nothing"}', M),
    (b'{"type":"auth","token":7}', M),
    (b'{"type":"ping","lat":1,"long":1}', M),
]


async def asked(socket: aiohttp.ClientWebSocketResponse, data: bytes | None, kinds: set[str]) -> dict[str, Any]:
    """Sends a message, if any; returns the answer of one of these types."""
    if data is not None:
        await socket.send_bytes(data)
    async with asyncio.timeout(10):
        while True:
            message: dict[str, Any] = orjson.loads(await _next(socket))
            if message["type"] in kinds:
                return message


async def _next(socket: aiohttp.ClientWebSocketResponse) -> bytes | str:
    message = await socket.receive()
    assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
    data: bytes | str = message.data
    return data


async def test_invalid_messages_of_a_vendor_app(running: Running, vendors: list[SeededVendor]) -> None:
    """Each error has its own code, on a socket and over HTTP, and the connection stays open."""
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendors[0].clerk_id, 600)}"}
    path = f"{running.url}/v1/vendors/{vendors[0].vendor_id}/locations"
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.ws_connect(f"{running.url}/v1/vendor") as socket:
            for data, code in PINGS:
                answer = await asked(socket, data, {"error", "reject", "ack"})
                assert answer.get("code") == code, (data[:100], answer)
                assert code is None or 0 < len(answer["message"]) < 400
                if answer["type"] == "reject":
                    assert (await asked(socket, None, {"ack"}))["seq"] == answer["seq"]
        for data, code in PINGS:
            async with session.post(path, data=data) as response:
                body = orjson.loads(await response.read())
                assert response.status == (200 if code is None or data == b"[]" else 400), (data[:100], body)
                assert body.get("code") in ({None} if response.status == 200 else CODES - {"ERR_INTERNAL"})


async def test_invalid_messages_of_a_customer_app(running: Running) -> None:
    """Each error has its own code and its watch's id, and the connection stays open."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{running.url}/v1/watch") as socket:
        for data, code in WATCHES:
            answer = await asked(socket, data, {"error", "snapshot"})
            assert answer.get("code") == code, (data[:100], answer)
            if b'"id":"h"' in data and code != J:
                assert answer["id"] == "h"


QUERIES = [
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e308",
    "",
    " ",
    "%00",
    "%ff",
    "0x10",
    "1_0",
    "%EF%BC%99",  # a digit, in Unicode
    "9" * 400,
    "true",
    "[]",
    "-0",
]


async def test_queries_over_http(running: Running, vendors: list[SeededVendor]) -> None:
    """No query string causes an internal error: it is answered, or refused with a code."""
    headers = {"Authorization": f"Bearer {make_token(SECRET, vendors[0].clerk_id, 600)}"}
    paths = ["/v1/vendors/nearby?lat=52&long=21&limit={}", "/v1/vendors/nearby?lat=52&long=21&radius={}"]
    paths += ["/v1/vendors/nearby?lat={}&long=21", "/v1/vendors/nearby?lat=52&lng={}"]
    history = f"/v1/vendors/{vendors[0].vendor_id}/locations"
    paths += [f"{history}?{name}={{}}" for name in ("from", "to", "limit", "cursor")]
    paths += [
        "/v1/vendors/{}",
        "/v1/vendors/{}/locations",
        "/v1/osmand?id=x&lat={}&lon=21",
        "/v1/osmand?lat=1&lon=2&timestamp={}",
    ]
    paths += ["/v1/vendor?vendorId={}", "/v1/watch?token={}", "/v1/vendors/nearby?token={}"]
    statuses = set()
    async with aiohttp.ClientSession(headers=headers) as session:
        for path in paths:
            for value in QUERIES:
                url = URL(running.url + path.format(value).replace(" ", "%20"), encoded=True)
                async with session.get(url) as response:
                    statuses.add(response.status)
                    text = await response.text()
                    assert response.status < 500, (path, value, text)
                    if response.status >= 400:
                        assert orjson.loads(text)["code"] in CODES
    assert {200, 400, 404} <= statuses


KEY = "a key of 32 bytes or more for tests"


@pytest.mark.parametrize(
    ("line", "header", "status"),
    [
        ("GET /metrics", b"X-Forwarded-For: 203.0.113.9\r\nAuthorization: Bearer \xff", 403),
        ("POST /v1/sign-in-links", b"Authorization: Bearer \xff", 401),
        ("POST /v1/sign-in-links", b"Authorization: Basic " + KEY.encode(), 401),
        ("POST /v1/sign-in-links", b"Authorization: Bearer " + KEY.encode(), 400),
        ("GET /v1/vendors/{id}/locations", b"Accept: \xff/\xff", 406),
        ("GET /v1/vendors/nearby", b"Authorization: Bearer \xff", 401),
    ],
)
async def test_headers(serve: Serve, vendors: list[SeededVendor], line: str, header: bytes, status: int) -> None:
    """A header that is not UTF-8 is refused without a traceback in the log; a key is accepted only as Bearer."""
    running = await serve(admin_token=KEY, backend_key=KEY, history_access="public")
    parts = urlsplit(running.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    start = line.format(id=vendors[0].vendor_id)
    writer.write(start.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b"\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert int(answer.split()[1]) == status, answer
