"""Outboxes: a wrong frame breaks every client, a stall not seen keeps a dead client's memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from streamer.transport.writer import PING_FRAME, EventOutbox, Outbox, bound_unsent, chunk_framing, socket_framing


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_socket_frame(size: int) -> None:
    """Each length of message is one final, unmasked text frame with its length in the shortest form."""
    payload = b"x" * size
    frame = socket_framing(payload)
    assert frame[0] == 0x81
    length, start = frame[1], 2
    if length == 126:
        length, start = int.from_bytes(frame[2:4]), 4
        assert length >= 126
    elif length == 127:
        length, start = int.from_bytes(frame[2:10]), 10
        assert length >= 65_536
    assert length == size
    assert frame[start:] == payload


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 4_000])
def test_event_chunk(size: int) -> None:
    """Each message is one event in one chunk whose length is right."""
    payload = b"x" * size
    length, rest = chunk_framing(payload).split(b"\r\n", 1)
    assert rest == b"data: " + payload + b"\n\n\r\n"
    assert int(length, 16) == len(rest) - 2


def test_frames_of_a_kind_can_be_shared() -> None:
    """Outboxes of one kind give the same framing, so that the live index frames once for all of them."""
    transport = cast(asyncio.Transport, None)
    assert Outbox(transport).framing is Outbox(transport).framing
    assert EventOutbox(transport).framing is EventOutbox(transport).framing
    assert Outbox(transport).framing is not EventOutbox(transport).framing


def test_ping_frame() -> None:
    """The heartbeat is an empty ping."""
    assert list(PING_FRAME) == [0x80 | 0x9, 0]


class Pair:
    """An outbox on a real transport, and the client's end of its connection."""

    def __init__(self, transport: asyncio.Transport, client: socket.socket) -> None:
        self.transport = transport
        self.outbox = Outbox(transport)
        self.client = client

    def fill(self) -> None:
        """Write more than the kernel takes."""
        while self.outbox.ready():
            self.outbox.write(b"x" * 65_536)

    async def read(self, size: int) -> int:
        """Take up to so many bytes as the client, and let the transport go on."""
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
    pair.outbox.send(b"hello")
    assert await asyncio.get_running_loop().sock_recv(pair.client, 100) == b"\x81\x05hello"
    assert pair.outbox.ready()
    assert pair.outbox.unread == 0


async def test_a_client_that_reads_nothing(pair: Pair) -> None:
    """A stall is counted from when the client stopped taking, and ends when it takes again."""
    assert pair.outbox.stalled(10.0) == 0.0
    pair.fill()
    assert not pair.outbox.ready()
    assert pair.outbox.unread > 0
    pair.outbox.stalled(20.0)
    assert pair.outbox.stalled(25.0) == 5.0
    while not pair.outbox.ready():
        assert await pair.read(65_536)
    assert pair.outbox.stalled(40.0) == 0.0
    assert pair.outbox.stalled(50.0) == 0.0


async def test_writing_more_is_no_progress(pair: Pair) -> None:
    """A client that takes nothing is stalled however many answers are added to what waits for it."""
    pair.fill()
    pair.outbox.stalled(20.0)
    for second in range(1, 10):
        pair.outbox.write(b"x" * 100)
        assert pair.outbox.stalled(20.0 + second) == second


async def test_a_slow_client_is_not_a_stalled_one(pair: Pair) -> None:
    """A client on a thin line that takes a little every now and then is kept."""
    pair.fill()
    pair.fill()
    for _ in range(8):
        pair.outbox.write(b"x" * 1_000_000)
    pair.outbox.stalled(20.0)
    for second in range(1, 4):
        assert await pair.read(1_000_000)
        assert pair.outbox.stalled(20.0 + second) == 0.0
    assert pair.outbox.stalled(30.0) > 0.0


async def test_a_client_that_is_gone(pair: Pair) -> None:
    """Writing to a client that is gone does nothing, raises nothing and keeps nothing."""
    pair.fill()
    pair.transport.abort()
    pair.outbox.write(b"x" * 1_000_000)
    pair.outbox.send(b"x")
    assert pair.outbox.unread == 0
    await asyncio.sleep(0)
    assert pair.outbox.unread == 0
    pair.outbox.stalled(1.0)


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
            outbox = Outbox(transport)
            written = 0
            while outbox.ready() and written < 64 << 20:
                outbox.write(b"x" * 4096)
                written += 4096
                await asyncio.sleep(0)
            taken.append(written)
            transport.abort()
            await asyncio.sleep(0)
    assert taken[1] <= taken[0]
    # what the client's system took at first, what is unsent, and the last frame
    assert taken[1] < 160 << 10, taken
