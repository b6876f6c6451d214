"""A network between an app and the server that a test may cut, close, freeze or make slow."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK = 16 << 10


class Proxy:
    """Carries TCP to a server; `url` is what the app is given instead of the server's."""

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.rate: float | None = None
        """Bytes a second towards the app; None: as fast as it goes."""
        self.connections = 0
        """How many there have been."""

    @property
    def url(self) -> str:
        """Where the app connects."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def up(self) -> None:
        """Take connections, again on the same port."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Cut all, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Carry nothing, and say nothing of it, as a dead link does."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Carry again."""
        self._flowing.set()

    async def reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server."""
        return await asyncio.open_connection(*self._target)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await self.reach()
            self._writers.add(there)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, there, None))
                both.create_task(self._copy(back, writer, self))
        except (OSError, ExceptionGroup):
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slowed: Proxy | None) -> None:
        while data := await reader.read(CHUNK if slowed is None or slowed.rate is None else 1024):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
            if slowed is not None and slowed.rate is not None:
                await asyncio.sleep(len(data) / slowed.rate)
        with suppress(OSError, RuntimeError):
            writer.write_eof()
