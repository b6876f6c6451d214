"""The load test's WebSocket client against RFC 6455: what it gets wrong would be blamed on the server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random

import pytest
from aiohttp import WSMsgType, web
from hypothesis import given
from hypothesis import strategies as st

from loadtest.clients.app import HALF_OPEN, App, ReadTime
from loadtest.clients.target import Target
from loadtest.clients.websocket import DEFLATE, GUID, PING, TEXT, Close, WebSocket, connect, frame
from loadtest.engine import scenario as scenarios
from tests.support.apps import eventually
from tests.support.loadtest_stand_in import standing_in
from venta_client.errors import Refused, Violation

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def server_frame(payload: bytes, first: int = 0x80 | TEXT) -> bytes:
    """A frame as a server sends it: without a mask."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def switching(key: bytes) -> bytes:
    """The answer that opens a WebSocket."""
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"


async def answered_with(reader: asyncio.StreamReader) -> bytes:
    """What to answer to the handshake that comes in."""
    request = await reader.readuntil(b"\r\n\r\n")
    (key,) = (line.split(b": ")[1] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
    return switching(key)


@asynccontextmanager
async def raw(peer: Peer) -> AsyncIterator[Target]:
    """A server that speaks bytes; at the end its connections are cut."""
    connections: list[tuple[asyncio.StreamWriter, asyncio.Event]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append((writer, asyncio.Event()))
        ended = connections[-1][1]
        try:
            await peer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], False)
    finally:
        server.close()
        for writer, ended in connections:
            writer.transport.abort()
            await asyncio.wait_for(ended.wait(), 10)
        await server.wait_closed()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
async def test_another_implementation_reads_what_is_sent_and_back(size: int) -> None:
    """Each of the three length forms must be right in both directions, or large batches would look lost."""

    async def echo(socket: web.WebSocketResponse) -> None:
        async for message in socket:
            await socket.send_str(message.data)

    got: asyncio.Queue[bytes] = asyncio.Queue(10)
    async with standing_in({"/": echo}) as target:
        socket = await connect(target, "/", got.put_nowait)
        text = "ż" * (size // 2) + "z" * (size % 2)
        socket.send(text.encode())
        assert await asyncio.wait_for(got.get(), 10) == text.encode()
        socket.close()
        assert (await socket.closed).code == 1000


async def test_another_implementation_compresses_what_is_received() -> None:
    """The bytes that a phone pays for are those before a message is inflated."""
    text = "a truck at a corner; " * 100

    async def echo(socket: web.WebSocketResponse) -> None:
        async for message in socket:
            await socket.send_str(message.data)

    got: asyncio.Queue[bytes] = asyncio.Queue(10)
    async with standing_in({"/": echo}) as target:
        socket = await connect(target, "/", got.put_nowait, deflate=True)
        for _ in range(2):
            socket.send(text.encode())
            assert await asyncio.wait_for(got.get(), 10) == text.encode()
            assert 0 < socket.size < len(text) / 10
        socket.close()
        assert (await socket.closed).code == 1000


@pytest.mark.parametrize(
    "payload", [b"{}", zlib.compress(b"{}")], ids=["nothing was agreed on", "what can't be inflated"]
)
async def test_compression_that_breaks_the_rules_is_named(payload: bytes) -> None:
    """A server that compresses for apps that can't inflate shows them nothing."""
    agreed = payload != b"{}"

    async def compress(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = await answered_with(reader)
        if agreed:
            answer = answer[:-2] + f"Sec-WebSocket-Extensions: {DEFLATE}\r\n\r\n".encode()
        writer.write(answer + server_frame(payload, 0xC0 | TEXT))
        await reader.read()

    async with raw(compress) as target:
        socket = await connect(target, "/", lambda message: None, deflate=agreed)
        with pytest.raises(Violation, match="inflated" if agreed else "reserved bits"):
            await asyncio.wait_for(socket.closed, 10)


async def test_a_ping_is_answered_with_its_payload() -> None:
    """A server that gets no pong closes the client for silence."""
    pongs: asyncio.Queue[bytes] = asyncio.Queue(10)

    async def ping(socket: web.WebSocketResponse) -> None:
        await socket.ping(b"are you there")
        message = await socket.receive()
        assert message.type == WSMsgType.PONG
        pongs.put_nowait(message.data)

    async with standing_in({"/": ping}, autoping=False) as target:
        socket = await connect(target, "/", lambda message: None)
        assert await asyncio.wait_for(pongs.get(), 10) == b"are you there"
        await socket.closed


async def test_the_close_code_and_reason_are_kept() -> None:
    """What an app does next depends on the code alone."""

    async def refuse(socket: web.WebSocketResponse) -> None:
        await socket.close(code=4403, message=b"not your vendor")

    async with standing_in({"/": refuse}) as target:
        socket = await connect(target, "/", lambda message: None)
        assert await socket.closed == Close(4403, "not your vendor")


async def test_an_end_without_a_close_frame_is_1006() -> None:
    """A killed server must not look like an orderly end."""

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await answered_with(reader))
        await writer.drain()

    async with raw(die) as target:
        socket = await connect(target, "/", lambda message: None)
        assert (await socket.closed).code == 1006


async def test_a_refused_handshake_has_status_and_body() -> None:
    """Without the body the reason of the refusal is unknown."""
    async with standing_in({}) as target:
        with pytest.raises(Refused, match="404: Not Found") as refused:
            await connect(target, "/nowhere", lambda message: None)
        assert refused.value.status == 404


async def test_a_refusal_in_pieces_is_read_to_its_end() -> None:
    """The reason often comes in another packet than the status."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (b"HTTP/1.1 401 No", b"\r\nContent-Length: 9\r\n\r\nno ", b"token"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"!")
        await writer.drain()

    async with raw(refuse) as target:
        with pytest.raises(Refused, match="no token!"):
            await connect(target, "/", lambda message: None)


async def test_a_server_that_does_not_answer_is_left_in_time() -> None:
    """A hanging server must end in a message, not in a hanging load test."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw(hang) as target:
        with pytest.raises(TimeoutError):
            await connect(target, "/", lambda message: None, within=0.1)


async def test_a_wrong_accept_is_a_violation() -> None:
    """A proxy that answers 101 without being a WebSocket would otherwise pass for one."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switching(b"another key"))
        await writer.drain()

    async with raw(lie) as target:
        with pytest.raises(Violation, match="Sec-WebSocket-Accept"):
            await connect(target, "/", lambda message: None)


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (frame(b"masked"), "masked"),
        (server_frame(b"x", 0xC1), "reserved bits"),
        (server_frame(b"x", 0x83), "opcode 3"),
        (server_frame(b"x", 0x8B), "unknown opcode 11"),
        (server_frame(b"x", 0x80), "opcode 0"),
        (server_frame(b"x", 0x01) + server_frame(b"y"), "opcode 1"),
        (server_frame(b"x", PING), "fragmented"),
        (server_frame(b"x" * 126, 0x80 | PING), "over 125"),
        (server_frame(b"x", 0x88), "half a code"),
        (bytes((0x81, 127)) + (1 << 40).to_bytes(8, "big"), "a message of over"),
    ],
)
async def test_what_the_rfc_forbids_ends_the_connection_with_a_reason(sent: bytes, complaint: str) -> None:
    """A lenient client would let a broken server pass."""

    async def break_rules(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await answered_with(reader) + sent)
        await writer.drain()
        await reader.read()

    async with raw(break_rules) as target:
        with pytest.raises(Violation, match=complaint):  # noqa: PT012  # whether at once or a packet later
            socket = await connect(target, "/", lambda message: None)
            await socket.closed


async def test_a_failing_callback_is_what_closed_raises() -> None:
    """An error in the load test itself must end the run and not be logged away by the event loop."""

    async def send(socket: web.WebSocketResponse) -> None:
        await socket.send_str("x")
        await socket.receive()

    def fail(message: bytes) -> None:
        raise ZeroDivisionError

    async with standing_in({"/": send}) as target:
        socket = await connect(target, "/", fail)
        with pytest.raises(ZeroDivisionError):
            await socket.closed


async def test_writes_pause_until_the_transport_has_room() -> None:
    """Without backpressure a slow server would fill this process's memory instead of slowing its senders."""
    reading = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await answered_with(reader))
        await writer.drain()
        await reading.wait()
        await reader.read()

    room = asyncio.Event()
    async with raw(late) as target:
        socket = await connect(target, "/", lambda message: None, on_writable=room.set)
        for _ in range(1000):
            if not socket.writable:
                break
            socket.send(b"x" * 60_000)
        assert not socket.writable
        assert not room.is_set()
        reading.set()
        await asyncio.wait_for(room.wait(), 10)
        assert socket.writable
        socket.abort()
        await socket.closed


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Messages, and the bytes that carry them: whole or in fragments with pings between, cut anywhere."""
    messages = draw(st.lists(st.binary(max_size=300), max_size=5))
    sent = b""
    for message in messages:
        cuts = sorted(draw(st.lists(st.integers(0, len(message)), max_size=3)))
        pieces = [message[begin:end] for begin, end in pairwise([0, *cuts, len(message)])]
        for index, piece in enumerate(pieces):
            final = 0x80 if index == len(pieces) - 1 else 0
            sent += server_frame(piece, final | (TEXT if index == 0 else 0))
            if draw(st.booleans()):
                sent += server_frame(b"p", 0x80 | PING)
    sent = switching(b"key") + sent
    cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    return messages, [sent[begin:end] for begin, end in pairwise([0, *cuts, len(sent)])]


class Sink(asyncio.Transport):
    """A transport that takes everything and goes nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nothing."""

    def is_closing(self) -> bool:
        return False


@given(streams())
def test_messages_do_not_depend_on_how_the_network_cuts_them(stream: tuple[list[bytes], list[bytes]]) -> None:
    """Frames split over packets are everyday; a message lost there would be blamed on the server."""
    messages, chunks = stream

    async def receive() -> list[bytes]:
        got: list[bytes] = []
        accept = base64.b64encode(hashlib.sha1(b"key" + GUID).digest())
        socket = WebSocket(b"", accept, got.append, None)
        socket.connection_made(Sink())
        for chunk in chunks:
            if chunk:
                socket.data_received(chunk)
        socket.connection_lost(None)
        await socket.closed
        return got

    assert asyncio.run(receive()) == messages


async def test_what_one_look_found_readable_was_read_at_one_time() -> None:
    """The last of a thousand sockets must not count as late because the load test read the others before it."""
    ticks = iter(range(10))
    now = ReadTime(lambda: float(next(ticks)))
    assert [now(), now(), now()] == [0, 0, 0]
    await asyncio.sleep(0)
    assert [now(), now()] == [1, 1]


async def test_a_half_open_connection_is_noticed_within_ten_seconds() -> None:
    """With the heartbeat of every scenario, looked after once a second: nothing comes, not even a pong."""

    async def silent(socket: web.WebSocketResponse) -> None:
        async for _ in socket:
            pass

    heartbeat = scenarios.load("quiet-town").heartbeat
    async with standing_in({"/": silent}, autoping=False) as target:
        app = App(target, None, Random(0))
        running = asyncio.create_task(app.run())
        await eventually(lambda: app.socket is not None and app.socket.opened.done(), "connected")
        noticed = 0
        while app.socket is not None and not app.socket.closed.done():
            app.check_alive(noticed := noticed + 1, heartbeat)
            await asyncio.sleep(0)
        await eventually(lambda: app.closes == {HALF_OPEN: 1}, "noticed")
        app.stop()
        await running
    assert noticed <= 10, "the first look is up to a second after the silence began"
