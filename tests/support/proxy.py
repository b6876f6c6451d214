"""A way to Redis that can be cut, stalled or made slow."""

from __future__ import annotations

import asyncio
import contextlib
import random
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes bytes to and fro. `lag`: each piece waits up to so many seconds, by chance, in its order."""

    def __init__(self, url: str, *, lag: float = 0.0, seed: int = 0) -> None:
        self.lag = lag
        self.refusing = False
        self.connections = 0
        self._parts = urlsplit(url)
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._stranded: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._parts._replace(netloc=f"127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._flows.set()
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
        await self._server.wait_closed()

    def lead_to(self, url: str) -> None:
        """New connections go there; those of now stay where they are."""
        self._parts = urlsplit(url)

    def cut(self) -> None:
        """End all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Pass nothing on, without a word, until `resume`."""
        self._flows.clear()

    def resume(self) -> None:
        """Pass on again, also what was held."""
        self._flows.set()

    def strand(self) -> None:
        """Pass nothing on in the connections of now, without a word and for ever; new ones work."""
        self._stranded |= self._writers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        own = asyncio.current_task()
        assert own is not None
        self._tasks.add(own)
        own.add_done_callback(self._tasks.discard)
        ends = {writer}
        self._writers |= ends
        try:
            if self.refusing:
                return
            try:
                there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            except OSError:
                return
            ends.add(back)
            self._writers.add(back)
            await asyncio.gather(self._pump(reader, back, ends), self._pump(there, writer, ends))
        finally:
            self._writers -= ends
            self._stranded -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, ends: set[asyncio.StreamWriter]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if self.lag:
                    await asyncio.sleep(self._random.uniform(0, self.lag))
                await self._flows.wait()
                if target in self._stranded:
                    continue
                if source.exception() is not None:
                    break  # reset while this was held: a network would have lost it
                target.write(data)
                await target.drain()
        for end in ends:
            end.transport.abort()
