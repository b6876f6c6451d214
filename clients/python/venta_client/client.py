"""The base of both clients: events, and the state of the connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from venta_client.errors import ConnectionFailed
from venta_client.link import Link, State

log = logging.getLogger("venta_client")

HELP = {
    "ERR_UNAUTHORIZED": "pass a token",
    "ERR_INVALID_TOKEN": "pass a valid token",
    "ERR_AREA_TOO_LARGE": "watch a smaller area, or its counts",
    "ERR_DROPPED": "raise `limit`, or report less often",
    "1006": "check the URL and the network; the client keeps trying",
    "4401": "pass a valid token",
    "4403": "this user does not own the vendor: check vendor_id and the token",
    "4404": "check vendor_id",
}
"""The remedy by error or close code."""

Listener = Callable[..., None]


class ServerError(NamedTuple):
    """An error message of the server; `code`: the protocol's error code, `id`: the watch's, `retry_after`: ms."""

    code: str
    message: str
    id: str | None = None
    retry_after: int | None = None

    @classmethod
    def of(cls, message: dict[str, Any]) -> ServerError:
        """Returns the error of a message."""
        return cls(message["code"], message["message"], message.get("id"), message.get("retryAfterMs"))


class Client:
    """A client that reconnects; use it as an async context manager, or call `connect` and `disconnect`."""

    _link: Link

    def __init__(self, **listeners: Listener | None) -> None:
        self._listeners: dict[str, list[Listener]] = {
            name: [] if listener is None else [listener] for name, listener in listeners.items()
        }
        self._warned: set[str] = set()
        self._changed = asyncio.Event()
        self._disconnects = 0

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()

    @property
    def state(self) -> State:
        """The state of the connection."""
        return self._link.state

    @property
    def failure(self) -> ConnectionFailed | None:
        """Why the client does not reconnect; None while it does."""
        return self._link.failure

    async def connect(self) -> None:
        """Connects and stays connected; ends a wait for the next attempt."""
        self._link.connect()

    async def disconnect(self) -> None:
        """Closes the connection, without waiting for pending work."""
        await self._disconnect()

    async def ready(self) -> None:
        """Returns when connected; raises ConnectionFailed if the connection fails for good or `disconnect` ends it."""
        await self._until(lambda: self.state == "connected")

    def on(self, name: str, listener: Listener) -> Self:
        """Adds a listener of an event; the names and arguments are those of the `on_…` options."""
        self._listeners[name].append(listener)
        return self

    def off(self, name: str, listener: Listener) -> Self:
        """Removes a listener."""
        if listener in self._listeners[name]:
            self._listeners[name].remove(listener)
        return self

    # internal

    async def _disconnect(self) -> None:
        self._disconnects += 1
        await self._link.disconnect()
        self._changed.set()  # also if the link was not connecting yet

    async def _until(self, done: Callable[[], bool]) -> None:
        """Waits until `done` is true; tests it after each change of the state and each answer."""
        begun, disconnects = self.state != "disconnected", self._disconnects
        while not done():
            if self.failure is not None:
                raise self.failure
            begun = begun or self.state != "disconnected" or self._disconnects != disconnects
            if begun and self.state == "disconnected":
                raise ConnectionFailed(1000, "disconnected by the app")
            self._changed.clear()
            await self._changed.wait()

    def became(self, state: State) -> None:
        """Handles a change of the link's state."""
        self._changed.set()
        heard = self._emit("state", state)
        close = self._link.close
        if not heard and close is not None and (state == "failed" or self._link.failures > 1):
            self._warn(str(close.code), close.reason or "the connection ended")

    def _emit(self, name: str, *values: Any) -> bool:
        """Calls the listeners of an event; returns whether there was one."""
        listeners = tuple(self._listeners[name])
        for listener in listeners:
            try:
                listener(*values)
            except Exception:  # a bug of the app must not end the connection
                log.exception("%r failed", listener)
        return bool(listeners)

    def _error(self, error: ServerError) -> None:
        if not self._emit("error", error):
            self._warn(error.code, error.message)

    def _warn(self, code: str, message: str) -> None:
        """Logs an event without a listener, once per code."""
        if code not in self._warned:
            self._warned.add(code)
            log.warning("%s (%s)%s", message, code, f": {HELP[code]}" if code in HELP else "")
