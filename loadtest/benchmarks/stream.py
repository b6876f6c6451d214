"""One vendor's connection that sends ready frames as fast as acks allow, at next to no cost to this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from loadtest.clients.identity import Identity
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.clients.websocket import Socket, connect, frame
from loadtest.errors import RunFailed
from loadtest.measure.histogram import Histogram
from venta_client.errors import Violation
from venta_client.ping import encode

HELLO_TIMEOUT = 30.0
JOINED = 64


class Stream:
    """A vendor's socket for pings that were encoded beforehand; use it as an async context manager.

    `acked` is the newest seq the server answered for, `rejected` counts rejects. `due` holds, for each seq from 1 on,
    when (perf_counter) the ping was due; with `delays` the time from then to its ack is recorded.
    """

    def __init__(
        self, target: Target, identity: Identity, token: Callable[[], str], delays: Histogram | None = None
    ) -> None:
        self.identity = identity
        self.sent = 0
        self.acked = 0
        self.rejected = 0
        self.due: list[float] = []
        self._target = target
        self._token = token
        self._delays = delays
        self._socket: Socket | None = None
        self._hello = asyncio.Event()
        self._frames: Sequence[bytes] = ()
        self._per_frame = 1
        self._window = 1
        self._next = 0
        self._base = 0
        self._stamp = 0
        self._finished = asyncio.Event()

    async def __aenter__(self) -> Stream:
        path = f"/v1/vendor?vendorId={quote(self.identity.vendor_id, safe='')}"
        try:
            self._socket = await connect(
                self._target, path, self._received, on_writable=self._fill, token=self._token(), within=HELLO_TIMEOUT
            )
            await asyncio.wait_for(self._hello.wait(), HELLO_TIMEOUT)
        except (OSError, TimeoutError) as failed:
            raise RunFailed(
                f"vendor {self.identity.vendor_id} could not connect: {failed!r}; is the server up?"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        socket = self._socket
        if socket is not None:
            socket.close()
            await asyncio.wait({socket.closed}, timeout=5.0)

    async def drive(self, frames: Sequence[bytes], per_frame: int, window: int, seconds: float, grace: float) -> None:
        """Send frames of `per_frame` pings each, `window` frames un-acked at most, until all are acked or time is over.

        After `seconds` nothing more is sent; what is under way is given `grace` more to be acked.
        """
        self._frames, self._per_frame, self._window, self._next, self._base = frames, per_frame, window, 0, self.acked
        self._finished.clear()
        self._fill()
        self._answered()
        if not await self._finish(seconds):
            self._frames = frames[: self._next]
            self._answered()
            await self._finish(grace)
        self._frames = ()

    def stamp(self) -> int:
        """Now, in epoch ms, but never the same twice: two pings of one millisecond would be one ping."""
        self._stamp = max(self._stamp + 1, int(time.time() * 1000))
        return self._stamp

    def ping(self, ping: Ping, due: float) -> None:
        """Send one ping now that was due at `due` (perf_counter)."""
        self.sent += 1
        self.due.append(due)
        self._open().send(encode([(self.sent, ping)]))

    async def answered(self, within: float) -> bool:
        """Wait until everything sent by `ping` is acked; False when it isn't in time."""
        until = time.perf_counter() + within
        while self.acked < self.sent and time.perf_counter() < until:
            self._open()
            await asyncio.sleep(0.01)
        return self.acked >= self.sent

    # inside

    def _open(self) -> Socket:
        if self._socket is None or self._socket.closed.done():
            close = self._socket.closed.result() if self._socket is not None else "it was never open"
            raise RunFailed(f"the connection of vendor {self.identity.vendor_id} ended within the run: {close}")
        return self._socket

    async def _finish(self, within: float) -> bool:
        """Wait for the last ack; RunFailed when the connection ends first."""
        waiting = asyncio.ensure_future(self._finished.wait())
        try:
            ends: set[asyncio.Future[Any]] = {waiting, self._open().closed}
            await asyncio.wait(ends, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if not self._finished.is_set():
                self._open()
            return self._finished.is_set()
        finally:
            waiting.cancel()

    def _fill(self) -> None:
        socket, frames = self._socket, self._frames
        if socket is None:
            return
        limit = min(len(frames), (self.acked - self._base) // self._per_frame + self._window)
        while self._next < limit and socket.writable:
            until = min(limit, self._next + JOINED)
            socket.write(frames[self._next] if until == self._next + 1 else b"".join(frames[self._next : until]))
            self.sent += (until - self._next) * self._per_frame
            self._next = until

    def _answered(self) -> None:
        if self._next >= len(self._frames) and self.acked >= self.sent:
            self._finished.set()

    def _received(self, message: bytes) -> None:
        decoded: dict[str, Any] = orjson.loads(message)
        kind = decoded.get("type")
        if kind == "ack":
            seq = decoded["seq"]
            if seq > self.sent:
                raise Violation(f"seq {seq} was acked, only {self.sent} were sent")
            if self._delays is not None:
                now = time.perf_counter()
                for due in self.due[self.acked : seq]:
                    self._delays.record(now - due)
            self.acked = max(self.acked, seq)
            self._fill()
            self._answered()
        elif kind == "reject":
            self.rejected += 1
        elif kind == "hello":
            self._hello.set()
        elif kind == "error":
            raise Violation(f"the server took exception: {decoded!r}")


def frames(pings: Sequence[Ping], per_frame: int, first_seq: int = 1) -> list[bytes]:
    """Ready frames of `per_frame` pings each, with seqs that rise from `first_seq`."""
    numbered = list(enumerate(pings, first_seq))
    return [frame(encode(numbered[at : at + per_frame])) for at in range(0, len(numbered), per_frame)]
