"""Writers: a wrong event breaks every client, a stall not seen keeps a dead client's memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from streamer.transport.writer import Writer, bound_unsent, event_chunk, event_lines


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 4_000])
def test_event_chunk(size: int) -> None:
    """Each message is one event in one chunk whose length is right."""
    payload = b"x" * size
    length, rest = event_chunk(payload).split(b"\r\n", 1)
    assert rest == b"data: " + payload + b"\n\n\r\n"
    assert int(length, 16) == len(rest) - 2


def test_event_lines() -> None:
    """HTTP/1.0 has no chunks: the event stands by itself."""
    assert event_lines(b"{}") == b"data: {}\n\n"


class Pair:
    """A writer on a real transport, and the client's end of its connection."""

    def __init__(self, transport: asyncio.Transport, client: socket.socket) -> None:
        self.transport = transport
        self.writer = Writer(transport)
        self.client = client

    def fill(self) -> None:
        """Write more than the kernel takes."""
        while self.writer.ready():
            self.writer.write(b"x" * 65_536)

    async def read(self, size: int) -> int:
        """Reads up to this many bytes as the client, and lets the transport continue."""
        loop = asyncio.get_running_loop()
        taken = 0
        while taken < size:
            try:
                async with asyncio.timeout(0.2):
                    taken += len(await loop.sock_recv(self.client, size - taken))
            except TimeoutError:
                break
        return taken


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    ours, client = socket.socketpair()
    client.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    try:
        yield Pair(transport, client)
    finally:
        transport.abort()
        client.close()
        await asyncio.sleep(0)


async def test_send(pair: Pair) -> None:
    """What is sent arrives as a frame, at once."""
    pair.writer.send(b"hello")
    assert await asyncio.get_running_loop().sock_recv(pair.client, 100) == b"\x81\x05hello"
    assert pair.writer.ready()
    assert pair.writer.unread == 0


async def test_a_first_frame_that_is_on_its_way(pair: Pair) -> None:
    """A client of which the first check finds nothing sent yet (uvloop writes a moment later) was cut as stalled."""
    pair.fill()
    writer = Writer(pair.transport)
    writer.send(b"hello")
    assert not writer.ready()
    assert writer.stalled(1000.0) == 0.0
    assert writer.stalled(1005.0) == 5.0


async def test_a_client_that_reads_nothing(pair: Pair) -> None:
    """A stall is counted from when the client stopped taking, and ends when it takes again."""
    assert pair.writer.stalled(10.0) == 0.0
    pair.fill()
    assert not pair.writer.ready()
    assert pair.writer.unread > 0
    pair.writer.stalled(20.0)
    assert pair.writer.stalled(25.0) == 5.0
    while not pair.writer.ready():
        assert await pair.read(65_536)
    assert pair.writer.stalled(40.0) == 0.0
    assert pair.writer.stalled(50.0) == 0.0


async def test_writing_more_is_no_progress(pair: Pair) -> None:
    """A client that takes nothing is stalled however many answers are added to what waits for it."""
    pair.fill()
    pair.writer.stalled(20.0)
    for second in range(1, 10):
        pair.writer.write(b"x" * 100)
        assert pair.writer.stalled(20.0 + second) == second


async def test_a_slow_client_is_not_a_stalled_one(pair: Pair) -> None:
    """A client on a thin line that takes a little every now and then is kept."""
    pair.fill()
    pair.fill()
    for _ in range(8):
        pair.writer.write(b"x" * 1_000_000)
    pair.writer.stalled(20.0)
    for second in range(1, 4):
        assert await pair.read(1_000_000)
        assert pair.writer.stalled(20.0 + second) == 0.0
    assert pair.writer.stalled(30.0) > 0.0


async def test_a_client_that_is_gone(pair: Pair) -> None:
    """Writing to a client that is gone does nothing, raises nothing and keeps nothing."""
    pair.fill()
    pair.transport.abort()
    pair.writer.write(b"x" * 1_000_000)
    pair.writer.send(b"x")
    assert pair.writer.unread == 0
    await asyncio.sleep(0)
    assert pair.writer.unread == 0
    pair.writer.stalled(1.0)


async def test_the_system_takes_little_of_what_a_slow_client_does_not() -> None:
    """A phone in a tunnel gets the newest positions when it is back, and not those of the last minutes one by one."""
    loop = asyncio.get_running_loop()
    taken = []
    for bounded in (False, True):
        with (
            socket.create_server(("127.0.0.1", 0)) as subscriber,
            socket.create_connection(subscriber.getsockname()) as deaf,
        ):
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            ours, _ = subscriber.accept()
            transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
            if bounded:
                bound_unsent(transport)
            writer = Writer(transport)
            written = 0
            while writer.ready() and written < 64 << 20:
                writer.write(b"x" * 4096)
                written += 4096
                await asyncio.sleep(0)
            taken.append(written)
            transport.abort()
            await asyncio.sleep(0)
    assert taken[1] <= taken[0]
    # what the client's system took at first, what is unsent, and the last frame
    assert taken[1] < 160 << 10, taken


async def test_nothing_follows_the_last_frame(pair: Pair) -> None:
    """A client must get nothing after its Close frame, whatever a tick or a commit still has for it."""
    pair.writer.end(b"the end")
    pair.writer.write(b"more")
    pair.writer.send(b"more")
    pair.transport.close()
    assert await asyncio.get_running_loop().sock_recv(pair.client, 100) == b"the end"
    assert await asyncio.get_running_loop().sock_recv(pair.client, 100) == b""
