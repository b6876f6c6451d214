"""The base of vendor apps and customer apps: one connection that reconnects."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import orjson

from loadtest.clients.target import Target
from loadtest.clients.websocket import ABNORMAL, Close, WebSocket, connect
from loadtest.measure.recording import time_of_day
from venta_client import reconnect
from venta_client.errors import Refused, Violation

SILENCE = 60.0
MAX_QUOTED = 20
SHORTEST_WAIT, LONGEST_WAIT = 0.25, 10.0
"""Bounds of the wait before a reconnect, s; lower than the clients' 1 and 30, so that recovery is measured sooner."""
TOKENS_TRIED = 3
OVERLOADED = (429, 503)
HALF_OPEN = 4408


class ReadTime:
    """The time of `clock`, the same for all sockets that are readable in one iteration of the event loop.

    The data of all of them had arrived when the first one was read. The time to read the others is the load generator's
    delay, not the server's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._now: float | None = None

    def __call__(self) -> float:
        if self._now is None:
            self._now = self._clock()
            asyncio.get_running_loop().call_soon(self._forget)
        return self._now

    def _forget(self) -> None:
        self._now = None


class App:
    """Keeps a connection to `path` open until `stop()`; each message goes to `received`.

    `token` is called before every connection for a fresh token. `ready` is set while the app has received its first
    message. `ended` holds the Close after which the app does not reconnect. `violations` quotes the first 20 protocol
    violations, `incidents` the first 20 closes and errors, each with its time. `closes` counts closes that the server
    or the network caused, not those of `disconnect()`, `sleep()` and `cut()`. `refused` counts handshakes refused by
    admission control (503, 429). `expected_closes` are close codes that are not faults. With `deflate` the app offers
    permessage-deflate.
    """

    path = "/"
    deflate = False
    expected_closes: frozenset[int] = frozenset()

    def __init__(self, target: Target, token: Callable[[], str] | None, random: Random, name: str = "") -> None:
        self.name = name or self.path
        self.socket: WebSocket | None = None
        self.ready = asyncio.Event()
        self.ended: Close | None = None
        self.connections = 0
        self.refused = 0
        self.errors: Counter[str] = Counter()
        self.closes: Counter[int] = Counter()
        self.violations: list[str] = []
        self.incidents: list[str] = []
        self.connecting_since = 0.0
        self.longest_wait = LONGEST_WAIT
        self._target = target
        self._token = token
        self._random = random
        self._bye_ms: int | None = None
        self._stopping = asyncio.Event()
        self._network = asyncio.Event()
        self._network.set()
        self._cut = False
        self._cut_at: float | None = None
        self._received_before = -1
        self._silent_since = 0.0

    # for subclasses

    def opened(self) -> None:
        """Called when a connection has been made."""

    def received(self, message: bytes) -> None:
        """Called with each message."""

    def size(self, message: bytes) -> int:
        """Returns the size of the newest message on the network in bytes."""
        return len(message) if self.socket is None else self.socket.size

    def writable(self) -> None:
        """Called when the connection's write buffer has room again."""

    def decode(self, message: bytes) -> dict[str, Any]:
        """Decodes a message and records the contents of `error` and `bye`; raises Violation if it is no JSON object."""
        try:
            decoded = orjson.loads(message)
        except orjson.JSONDecodeError as bad:
            raise Violation(f"the server sent what is not JSON ({bad}): {message[:200]!r}") from None
        if not isinstance(decoded, dict):
            raise Violation(f"the server sent {message[:200]!r}; every message is an object")
        kind = decoded.get("type")
        if kind == "error":
            self.errors[str(decoded.get("code"))] += 1
            self._note(f"the server sent the error {decoded.get('code')}: {str(decoded.get('message'))[:200]}")
        elif kind == "bye":
            self._bye_ms = int(decoded.get("reconnectAfterMs", 0))
        return decoded

    def recovered(self) -> float | None:
        """Returns the seconds since `cut()` once, when the app is ready again; otherwise None."""
        cut_at, self._cut_at = self._cut_at, None
        return None if cut_at is None else time.perf_counter() - cut_at

    # for the owner

    async def run(self) -> None:
        """Connects, listens and reconnects until it is stopped or a close code forbids to reconnect."""
        failures = 0
        while not self._stopping.is_set():
            await self._network.wait()  # stop() ends this wait too
            if self._stopping.is_set():
                return
            close = await self._connection()
            if self._stopping.is_set():
                return
            cut, self._cut = self._cut, False
            was_ready = self.ready.is_set()
            self.ready.clear()
            if not self._network.is_set():
                failures = 0
                continue
            if not cut and close.refused:
                self.refused += 1
            elif not cut and close.code not in self.expected_closes:
                self.closes[close.code] += 1
                self._note(f"the connection ended with {close.code}: {close.reason}")
            failures = 1 if was_ready else failures + 1
            bye_ms, self._bye_ms = self._bye_ms, None
            rule = reconnect.rule(close.code)
            if rule == "no" or (rule == "token" and failures >= TOKENS_TRIED):
                self.ended = close
                return
            wait = reconnect.wait(
                close.code,
                failures,
                self._random.random(),
                min_delay=SHORTEST_WAIT * 1000,
                max_delay=self.longest_wait * 1000,
                reconnect_after=bye_ms,
            )
            try:
                await asyncio.wait_for(self._stopping.wait(), wait / 1000)
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Closes the connection gracefully and does not reconnect."""
        self._stopping.set()
        self._network.set()
        if self.socket is not None:
            self.socket.close()

    @property
    def faults(self) -> int:
        """The number of errors, closes and violations that the server or the network caused."""
        return self.errors.total() + self.closes.total() + len(self.violations)

    def disconnect(self) -> None:
        """Simulates a lost network: aborts the connection, and opens none until `reconnect()`."""
        self._network.clear()
        self.cut()
        self._cut_at = None

    def sleep(self) -> None:
        """Simulates a sleeping phone: closes the connection gracefully, and opens none until `reconnect()`."""
        self._network.clear()
        if self.socket is not None:
            self._cut = True
            self.socket.close()

    def reconnect(self) -> None:
        """Restores the phone's network."""
        self._network.set()

    @property
    def reachable(self) -> bool:
        """Whether the phone has a network."""
        return self._network.is_set()

    def cut(self) -> None:
        """Aborts the connection; the app reconnects, and this close does not count as a fault of the server."""
        if self.socket is not None:
            self._cut = True
            self._cut_at = time.perf_counter()
            self.socket.abort()

    def check_alive(self, now: float, heartbeat: float) -> None:
        """Pings a connection without data for `heartbeat` s, and ends it after twice that as half-open.

        `now` is a monotonic time in seconds. Call it at least every `heartbeat` / 2.
        """
        socket = self.socket
        if socket is None or socket.held or not socket.opened.done():
            self._received_before = -1
        elif socket.received != self._received_before:
            self._received_before, self._silent_since = socket.received, now
        elif now - self._silent_since > 2 * heartbeat:
            self._received_before = -1
            socket.give_up(Close(HALF_OPEN, f"half-open: no answer to a WebSocket ping for {heartbeat:g} s"))
        elif now - self._silent_since > heartbeat:
            socket.ping()

    async def _connection(self) -> Close:
        self.connecting_since = time.perf_counter()
        try:
            self.socket = await connect(
                self._target,
                self.path,
                self._receive,
                on_writable=self.writable,
                token=self._token() if self._token is not None else None,
                deflate=self.deflate,
            )
        except Refused as refused:
            overloaded = refused.status in OVERLOADED
            return Close(reconnect.code_of_status(refused.status), str(refused), overloaded)
        except Violation as violation:
            return self._blame(violation)
        except (OSError, TimeoutError) as failed:
            return Close(ABNORMAL, f"no connection: {failed!r}")
        self.connections += 1
        try:
            if self._stopping.is_set():
                self.socket.close()
            elif not self._network.is_set():
                self.socket.abort()
            self.opened()
            return await self._listen(self.socket)
        except Violation as violation:
            return self._blame(violation)
        finally:
            self.socket.abort()
            self.socket = None

    def _receive(self, message: bytes) -> None:
        try:
            self.received(message)
        except Violation as violation:
            self._blame(violation)
        except (KeyError, TypeError, ValueError, AttributeError) as bad:
            self._blame(Violation(f"a malformed message ({bad!r}): {message[:200]!r}"))

    def _blame(self, violation: Violation) -> Close:
        if len(self.violations) < MAX_QUOTED:
            self.violations.append(f"{time_of_day(time.time() * 1000)} {self.name}: {violation}")
        return Close(ABNORMAL, str(violation))

    def _note(self, what: str) -> None:
        if len(self.incidents) < MAX_QUOTED:
            self.incidents.append(f"{time_of_day(time.time() * 1000)} {self.name}: {what}")

    async def _listen(self, socket: WebSocket) -> Close:
        """Waits for the close; a connection without data for 60 s is dead, as the server pings more often."""
        before = -1
        while True:
            done, _ = await asyncio.wait({socket.closed}, timeout=SILENCE)
            if done:
                return socket.closed.result()
            if socket.received == before and not socket.held:
                return Close(HALF_OPEN, f"nothing came from the server for {SILENCE:g} s")
            before = socket.received


async def stop(apps: Iterable[App], tasks: Iterable[asyncio.Task[None]], within: float) -> None:
    """Closes all connections; cancels what has not ended within `within` s."""
    for app in apps:
        app.stop()
    # a connect in progress does not react to stop(), so it gets some time
    if waiting := list(tasks):
        await asyncio.wait(waiting, timeout=within)
    for task in waiting:
        task.cancel()
