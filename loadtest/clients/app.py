"""What vendor apps and customer apps have in common: one connection that comes back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import orjson

from loadtest.clients.target import Target
from loadtest.clients.websocket import ABNORMAL, Close, Socket, connect
from loadtest.errors import RunFailed
from venta_client import reconnect
from venta_client.errors import Refused, Violation

SILENCE = 60.0
MAX_VIOLATIONS = 20


class App:
    """Stays connected to `path` until `stop()`; what comes in goes to `received`.

    `token` is called before every connection, with nothing, for a fresh one. `ready` is set while the app has heard
    what it waits for first. `ended` holds the Close after which the app does not come back. What the server did against
    the protocol is kept in `violations` (the first 20) and does not end the run. `closes` counts the ends that came
    from the server or on the way, not those of `lose()`, `rest()` and `cut()`. `run()` is owned by the caller.
    """

    path = "/"

    def __init__(self, target: Target, token: Callable[[], str] | None, random: Random) -> None:
        self.socket: Socket | None = None
        self.ready = asyncio.Event()
        self.ended: Close | None = None
        self.connections = 0
        self.errors: Counter[str] = Counter()
        self.closes: Counter[int] = Counter()
        self.violations: list[str] = []
        self.connecting_since = 0.0
        self.longest_wait = reconnect.LONGEST_DELAY
        self._target = target
        self._token = token
        self._random = random
        self._bye_ms: int | None = None
        self._stopping = asyncio.Event()
        self._network = asyncio.Event()
        self._network.set()
        self._cut = False

    # for the kinds of apps

    def opened(self) -> None:
        """The connection has just been made."""

    def received(self, message: bytes) -> None:
        """One message came."""

    def writable(self) -> None:
        """The connection has room again."""

    def decode(self, message: bytes) -> dict[str, Any]:
        """A message's JSON object; keeps what `error` and `bye` say, Violation for what is no object."""
        try:
            decoded = orjson.loads(message)
        except orjson.JSONDecodeError as bad:
            raise Violation(f"the server sent what is not JSON ({bad}): {message[:200]!r}") from None
        if not isinstance(decoded, dict):
            raise Violation(f"the server sent {message[:200]!r}; every message is an object")
        kind = decoded.get("type")
        if kind == "error":
            self.errors[str(decoded.get("code"))] += 1
        elif kind == "bye":
            self._bye_ms = int(decoded.get("reconnectAfterMs", 0))
        return decoded

    # for their owner

    async def run(self) -> None:
        """Connect, listen, come back, until stopped or told not to return."""
        fruitless = 0
        while not self._stopping.is_set():
            await self._network.wait()  # stop() ends this wait too
            if self._stopping.is_set():
                return
            close = await self._connection()
            if self._stopping.is_set():
                return
            cut, self._cut = self._cut, False
            if not self._network.is_set():
                self.ready.clear()
                fruitless = 0
                continue
            if not cut:
                self.closes[close.code] += 1
            fruitless = 0 if self.ready.is_set() else fruitless + 1
            self.ready.clear()
            wait = reconnect.delay(close.code, fruitless, self._bye_ms, self._random.random(), self.longest_wait)
            self._bye_ms = None
            if wait is None:
                self.ended = close
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), wait)
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Close the connection in good order and do not come back."""
        self._stopping.set()
        self._network.set()
        if self.socket is not None:
            self.socket.close()

    @property
    def faults(self) -> int:
        """How many errors, closes and violations came from the server or on the way."""
        return self.errors.total() + self.closes.total() + len(self.violations)

    def lose(self) -> None:
        """The phone's network goes away: the connection ends without a word and none is tried until `regain()`."""
        self._network.clear()
        self.cut()

    def rest(self) -> None:
        """Put the phone away: the connection is closed in good order and none is tried until `regain()`."""
        self._network.clear()
        if self.socket is not None:
            self._cut = True
            self.socket.close()

    def regain(self) -> None:
        """The network is back, or the phone in the hand."""
        self._network.set()

    @property
    def reachable(self) -> bool:
        """Whether the phone has a network."""
        return self._network.is_set()

    def cut(self) -> None:
        """The connection is cut and the app comes back as it would by itself; no fault of the server's."""
        if self.socket is not None:
            self._cut = True
            self.socket.abort()

    async def wait_ready(self, within: float) -> None:
        """Return when the app is ready; RunFailed when it isn't `within` seconds, with what the server said."""
        try:
            await asyncio.wait_for(self.ready.wait(), within)
        except TimeoutError:
            last = self.ended or f"closes {dict(self.closes)}, errors {dict(self.errors)}"
            raise RunFailed(f"{self.path} was not ready within {within:g} s ({last}); is the server up?") from None

    async def _connection(self) -> Close:
        """One connection from its beginning to its end."""
        self.connecting_since = time.perf_counter()
        try:
            self.socket = await connect(
                self._target,
                self.path,
                self._receive,
                on_writable=self.writable,
                token=self._token() if self._token is not None else None,
            )
        except Refused as refused:
            return Close(reconnect.code_of_status(refused.status), str(refused))
        except (OSError, TimeoutError) as failed:
            return Close(ABNORMAL, f"no connection: {failed!r}")
        except Violation as violation:
            return self._blame(violation)
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

    def _blame(self, violation: Violation) -> Close:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"{self.path}: {violation}")
        return Close(ABNORMAL, str(violation))

    async def _listen(self, socket: Socket) -> Close:
        """Wait for the end; a connection on which nothing came for 60 s is dead, the server pings more often."""
        heard = -1
        while True:
            done, _ = await asyncio.wait({socket.closed}, timeout=SILENCE)
            if done:
                return socket.closed.result()
            if socket.received == heard:
                return Close(4408, f"nothing heard from the server for {SILENCE:g} s")
            heard = socket.received
