"""TLS in front of a server without TLS: the test's PostgreSQL and Valkey are built without it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""The first request of a PostgreSQL client, in plain text; the answer S means that TLS follows."""


class TlsFront:
    """Terminates TLS and forwards bytes to the server of a URL; `url` is the same URL through this proxy.

    `certificate`: a trustme certificate; `clients`: a trustme authority that a client's certificate must come from.
    """

    def __init__(self, url: str, certificate: Any, *, clients: Any = None) -> None:
        self._parts = urlsplit(url)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        if clients is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            clients.configure_trust(self._context)
        self._tasks: set[asyncio.Task[None]] = set()
        self.served = 0
        """The number of connections with a TLS handshake."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user, at, _ = self._parts.netloc.rpartition("@")
        scheme = self._parts.scheme.replace("redis", "rediss", 1)
        self.url = urlunsplit(self._parts._replace(scheme=scheme, netloc=f"{user}{at}localhost:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                if self._parts.scheme.startswith("postgres"):
                    if await reader.readexactly(8) != SSL_REQUEST:
                        return  # plain text is not accepted
                    writer.write(b"S")
                await writer.start_tls(self._context)
                self.served += 1
                there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
                ends.append(back)
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
            finally:
                for end in ends:
                    end.transport.abort()

    @staticmethod
    async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        raise ConnectionError("that side has ended")
