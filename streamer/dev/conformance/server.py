"""The server of one case: it sends what the case's script says, and simulates network faults."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import orjson

from streamer.errors import FrameError
from streamer.protocol import frames
from streamer.protocol.deflate import Deflater, accept_deflate
from streamer.protocol.messages import BEARER, SUBPROTOCOL

MAX_MESSAGE = 64 << 10
"""Maximum bytes of a message, as on the real server."""


class Connection:
    """One handshake of the client, and the WebSocket it becomes when it is accepted."""

    def __init__(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *lines = head.split("\r\n")
        target = urlsplit(request.split(" ")[1])
        self.path = target.path
        self.query = {name: values[-1] for name, values in parse_qs(target.query).items()}
        self.arrived = time.monotonic()
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.faults: list[str] = []
        """Protocol violations of the client."""
        self.closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        """The code of the client's close frame; None if it sent none."""
        self._headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        self._protocols = [item.strip() for item in self._headers.get("sec-websocket-protocol", "").split(",")]
        self._deflate = accept_deflate(self._headers.get("sec-websocket-extensions", ""))
        self._reader = reader
        self._writer = writer
        self._deflater = Deflater()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._reading: asyncio.Task[None] | None = None

    @property
    def token(self) -> str | None:
        """The token of the handshake, from its header, query or subprotocol."""
        scheme, _, token = self._headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return token
        offered = [one.removeprefix(BEARER) for one in self._protocols if one.startswith(BEARER)]
        return offered[0] if offered else self.query.get("token")

    def accept(self) -> None:
        """Open the WebSocket."""
        accept = frames.accept_key(self._headers.get("sec-websocket-key", ""))
        answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        answer += f"Sec-WebSocket-Accept: {accept}\r\n"
        if SUBPROTOCOL in self._protocols:
            answer += f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
        if self._deflate is not None:
            answer += f"Sec-WebSocket-Extensions: {self._deflate}\r\n"
        self._writer.write(f"{answer}\r\n".encode())
        self._reading = asyncio.create_task(self._read())

    def refuse(self, status: int) -> None:
        """Answer the handshake with an HTTP status."""
        self._writer.write(f"HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        self._writer.close()

    def send(self, message: dict[str, Any] | str, form: str = "plain") -> None:
        """Send a message as one frame, compressed where the client offers it, or in `fragments`."""
        payload = message.encode() if isinstance(message, str) else orjson.dumps(message)
        first = frames.FINAL | frames.TEXT
        if form == "compressed" and self._deflate is not None:
            payload, first = self._deflater.deflated(payload), first | frames.COMPRESSED
        if form != "fragments":
            self._writer.write(frames.encode_frame(payload, first))
            return
        # not at the borders of characters, and with a ping between
        third = max(1, len(payload) // 3)
        parts = [payload[:third], payload[third : 2 * third], payload[2 * third :]]
        self._writer.write(frames.encode_frame(parts[0], frames.TEXT))
        self._writer.write(frames.PING_FRAME)
        self._writer.write(frames.encode_frame(parts[1], frames.CONTINUATION))
        self._writer.write(frames.encode_frame(parts[2], frames.FINAL | frames.CONTINUATION))

    def close(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        self._writer.write(frames.close_frame(code, reason))

    def cut(self) -> None:
        """End without a close frame, as a lost network does."""
        self._writer.transport.abort()

    def stall(self) -> None:
        """Keep the connection open without reading or answering: a half-open connection."""
        self._flowing.clear()

    async def end(self) -> None:
        """Release all resources."""
        self.cut()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        reader = frames.FrameReader(MAX_MESSAGE, deflate=self._deflate is not None)
        code: int | None = None
        try:
            while code is None and (data := await self._reader.read(65536)):
                await self._flowing.wait()
                reader.feed(data)
                while code is None and (frame := reader.next()) is not None:
                    code = self._take(*frame)
        except FrameError as broken:
            self.faults.append(str(broken))
        except OSError:
            pass  # reset by the client: it is gone
        finally:
            self._writer.close()
            if not self.closed.done():
                self.closed.set_result(code)

    def _take(self, opcode: int, payload: bytes) -> int | None:
        if opcode == frames.CLOSE:
            code = frames.parse_close(payload) or 1005
            if code != 1005:
                self._writer.write(frames.close_frame(code))
            return code
        if opcode == frames.PING:
            self._writer.write(frames.pong_frame(payload))
        elif opcode in (frames.TEXT, frames.BINARY):
            try:
                message = orjson.loads(payload)
            except orjson.JSONDecodeError:
                message = None
            if isinstance(message, dict):
                self.messages.put_nowait(message)
            else:
                self.faults.append(f"sent a message that is no JSON object: {payload[:200]!r}")
        return None


class CaseServer:
    """Listens on a free port; handshakes wait in `arrivals` until the script answers them."""

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[Connection] = asyncio.Queue()
        self.connections: list[Connection] = []

    @property
    def url(self) -> str:
        """Where the client connects."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._arrive, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self.connections:
            await connection.end()

    async def _arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.close()
            return
        connection = Connection(head, reader, writer)
        self.connections.append(connection)
        self.arrivals.put_nowait(connection)
