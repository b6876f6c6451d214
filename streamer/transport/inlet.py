"""Reads many vendors' sockets together, and no sooner than what they bring can have an effect."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp.base_protocol import BaseProtocol

CHUNK = 64 << 10
"""Bytes that are read of one socket before the others have their turn."""
MOST = 512
"""Sockets that are read before the loop has its turn."""
GATHERED = 256
"""Sockets with something to read that are worth a look: what a look saves is spread over so many already."""
SOON = 0.001
"""Seconds that are not waited, and that a look is late: the loop's timers are not finer."""


class Tap(asyncio.Transport):
    """A connection's transport whose reading is the inlet's; everything else is the transport's own."""

    def __init__(self, inlet: Inlet, protocol: BaseProtocol, transport: asyncio.Transport, fd: int) -> None:
        super().__init__()
        self.protocol = protocol
        self.transport = transport
        self.fd = fd
        self.open = True
        """The inlet reads it; else the transport does so itself."""
        self._inlet = inlet

    def pause_reading(self) -> None:
        """Let what the client sends wait in the system."""
        if self.open:
            self._inlet.shut(self)
        else:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.open:
            self._inlet.watch(self)
        else:
            self.transport.resume_reading()

    def is_closing(self) -> bool:
        """As the transport's."""
        return self.transport.is_closing()

    def close(self) -> None:
        """As the transport's: nothing more is read."""
        self.pause_reading()
        self.transport.close()

    def abort(self) -> None:
        """As the transport's."""
        self.transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport's."""
        return self.transport.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As the transport's."""
        self.transport.write(data)

    def get_write_buffer_size(self) -> int:
        """As the transport's."""
        return self.transport.get_write_buffer_size()


class Inlet:
    """Reads the connections that join it; `when` tells the time (the loop's) before which nothing need be read.

    At most `longest` seconds pass between two looks whatever it says.

    A loop that wakes for each ping finds its code gone from the caches: at 200 pings a second that costs ten times what
    the ping does. A ping that could be neither shown nor stored before the next tick and the next commit loses nothing
    by being read with all the others then. A quiet server's `when` has passed, and each ping is read as it comes.
    """

    def __init__(self, when: Callable[[], float], *, longest: float = 1.0) -> None:
        self._when = when
        self._most = longest
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._taps: dict[int, Tap] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._longest = 0.0
        """Seconds after the last look by when GATHERED sockets will have something, or `longest` is over."""

    @contextmanager
    def reading(self, protocol: BaseProtocol) -> Iterator[None]:
        """Read a connection while the context lasts."""
        tap = self.join(protocol)
        try:
            yield
        finally:
            if tap is not None:
                self.leave(tap)

    def join(self, protocol: BaseProtocol) -> Tap | None:
        """Read a connection from now on; None when it must read itself, as where the system has no epoll."""
        transport = protocol.transport
        if self._epoll is None or transport is None or transport.is_closing() or transport.get_extra_info("sslcontext"):
            return None
        transport.pause_reading()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._epoll.fileno(), self._readable)
        tap = Tap(self, protocol, transport, transport.get_extra_info("socket").fileno())
        protocol.transport = tap
        self.watch(tap)
        return tap

    def leave(self, tap: Tap) -> None:
        """Have a connection read itself again."""
        if tap.open:
            self.shut(tap)
            tap.open = False
            if tap.protocol.transport is tap:
                tap.protocol.transport = tap.transport
            if not tap.transport.is_closing():
                tap.transport.resume_reading()

    def close(self) -> None:
        """Read nothing more; connections that are still here stay unread."""
        if self._timer is not None:
            self._timer.cancel()
        if self._epoll is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def watch(self, tap: Tap) -> None:
        """Look at a connection's socket."""
        if self._epoll is not None and self._taps.get(tap.fd) is not tap and not tap.transport.is_closing():
            # One that was here by this number is closed, or the system would not have given the number away.
            self._taps[tap.fd] = tap
            self._epoll.register(tap.fd, select.EPOLLIN)

    def shut(self, tap: Tap) -> None:
        """Look at a connection's socket no more."""
        if self._taps.get(tap.fd) is tap:
            del self._taps[tap.fd]
            # The number of one that is closing may be another's already.
            if self._epoll is not None and not tap.transport.is_closing():
                self._epoll.unregister(tap.fd)

    def look(self) -> bool:
        """Read what is there; tells whether there was anything."""
        if self._timer is None:
            return False  # nothing was there that was held back
        self._timer.cancel()
        return self._look_again()

    def _readable(self) -> None:
        """Some socket has something."""
        assert self._loop is not None
        assert self._epoll is not None
        now = self._loop.time()
        when = min(self._when(), self._looked + self._longest)
        if when - now > SOON:
            self._loop.remove_reader(self._epoll.fileno())
            self._timer = self._loop.call_at(when + SOON, self._look_again)
        else:
            self._look(now)

    def _look_again(self) -> bool:
        self._timer = None
        if self._loop is None or self._epoll is None:
            return False
        self._loop.add_reader(self._epoll.fileno(), self._readable)
        return self._look(self._loop.time())

    def _look(self, now: float) -> bool:
        assert self._epoll is not None
        ready = self._epoll.poll(0, MOST)
        full = len(ready) == MOST
        for fd, _ in ready:
            tap = self._taps.get(fd)
            if tap is None:  # it was closing when it left
                with suppress(OSError):
                    self._epoll.unregister(fd)
                continue
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self.leave(tap)  # the transport finds the end, or the error, itself
                continue
            full = full or len(data) == CHUNK
            try:
                tap.protocol.data_received(data)
            except Exception as error:
                assert self._loop is not None
                self._loop.call_exception_handler(
                    {"message": "a message could not be taken in", "exception": error, "protocol": tap.protocol}
                )
                tap.transport.abort()
        # A client that pours out what it gathered is not held up.
        self._longest = 0.0 if full else min(self._most, GATHERED * (now - self._looked) / max(1, len(ready)))
        self._looked = now
        return bool(ready)
