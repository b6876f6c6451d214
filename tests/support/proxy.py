"""A TCP proxy that a test may reset, close, freeze, slow down or redirect."""

from __future__ import annotations

import asyncio
import random
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK = 16 << 10
SMALL_CHUNK = 1 << 10
ON_THEIR_WAY = 5
"""Rounds of the event loop until a connection that was accepted is known to `Proxy`."""


class Proxy:
    """Forwards TCP connections to the server at `url`; its own `url` differs only in host and port.

    It always listens, also while it is down, so that no other process takes its port.
    """

    def __init__(self, url: str, *, lag: float = 0.0, seed: int = 0) -> None:
        self._parts = urlsplit(url)
        self._random = random.Random(seed)
        self._lag = lag
        self._writers: set[asyncio.StreamWriter] = set()
        self._stranded: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._down = self._ended = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.url = url
        self.rate: float | None = None
        """Bytes per second towards the client; None: unlimited."""
        self.cut_request: bytes | None = None
        """Resets the connection once, instead of forwarding data from the client that contains this."""
        self.cut_answer: bytes | None = None
        """Likewise for data from the server."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        credentials, at, _ = self._parts.netloc.rpartition("@")
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._parts._replace(netloc=f"{credentials}{at}127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        # asyncio forgets an accepted connection when the server closes, and leaves it open
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _round in range(ON_THEIR_WAY):
            await asyncio.sleep(0)
        self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def down(self) -> None:
        """Resets all connections, and new ones immediately."""
        self._down = True
        self.cut()

    def up(self) -> None:
        """Accepts connections again."""
        self._down = False

    def cut(self) -> None:
        """Resets all connections; accepts new ones."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Forwards and closes nothing, like a dead network, until `thaw`."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forwards again, also the held data."""
        self._flowing.set()

    def strand(self) -> None:
        """Drops all data of the present connections, without closing them; new connections work."""
        self._stranded |= self._writers

    def lead_to(self, url: str) -> None:
        """Forwards new connections to another server; present ones stay."""
        self._parts = urlsplit(url)

    async def reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects to the server."""
        return await asyncio.open_connection(self._parts.hostname, self._parts.port)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ended:  # it was just being connected
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # one that is cancelled before its first step has closed nothing
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._writers.add(writer)
        try:
            if self._down:
                return
            answers, server = await self.reach()
            ends.add(server)
            self._writers.add(server)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, server, "cut_request"))
                both.create_task(self._forward(answers, writer, "cut_answer"))
        except (OSError, ExceptionGroup):
            pass  # one side has reset the connection: so does the other
        finally:
            self._writers -= ends
            self._stranded -= ends
            for end in ends:
                end.transport.abort()
            # asyncio reports the reset that ended a stream unless somebody has asked for it
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, cut: str) -> None:
        def rate() -> float | None:
            return self.rate if cut == "cut_answer" else None

        while data := await source.read(SMALL_CHUNK if rate() else CHUNK):
            if self._lag:
                await asyncio.sleep(self._random.uniform(0, self._lag))
            await self._flowing.wait()
            if target in self._stranded:
                continue
            if (error := source.exception()) is not None:
                raise error  # reset while this was held: a network would have lost it
            piece = getattr(self, cut)
            if piece is not None and piece in data:
                setattr(self, cut, None)
                raise ConnectionResetError
            target.write(data)
            await target.drain()
            if slow := rate():
                await asyncio.sleep(len(data) / slow)
        if target.can_write_eof():
            target.write_eof()
