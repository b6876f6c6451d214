"""A WebSocket that reconnects. The owner handles its messages; this module decides whether and when to connect."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, Protocol

import aiohttp
from yarl import URL

from venta_client import reconnect
from venta_client.errors import ConnectionFailed, Violation
from venta_client.token import renew_in

log = logging.getLogger("venta_client")

SUBPROTOCOL = "streamer.v1"
ABNORMAL = 1006
CONNECT_TIMEOUT = 15.0
HEARTBEAT = 20.0
CLOSE_TIMEOUT = 2.0
MAX_MESSAGE = 64 << 20
HEALTHY = 5.0
"""Seconds after which a connection resets the count of failures."""
TOKEN_RETRY = 5.0

State = Literal["connecting", "connected", "reconnecting", "disconnected", "failed"]
"""`reconnecting`: waiting for the next attempt. `failed`: for good, see `failure`. `disconnected`: by the app, or not
connected yet."""

Token = str | Callable[[bool], str | Awaitable[str | None] | None] | None
"""A token, or a function that returns one; called with True if the last one was refused or expires soon."""

Send = Callable[[bytes], Awaitable[None]]


class Close(NamedTuple):
    """The close code and reason of a connection; 1006 without a close frame."""

    code: int
    reason: str


class Owner(Protocol):
    """Receives a link's events, and sends messages on it."""

    def opened(self) -> None:
        """Called when a new connection is open, before any message."""

    def took(self, message: dict[str, Any]) -> None:
        """Called with each message; Violation ends the connection."""

    async def speak(self, send: Send) -> None:
        """Sends pending messages until cancelled."""

    def became(self, state: State) -> None:
        """Called when the link's state changed."""


class Link:
    """Stays connected to a path of the server until closed, or until a close code forbids to reconnect."""

    def __init__(
        self,
        url: str,
        path: str,
        owner: Owner,
        *,
        token: Token = None,
        params: dict[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
        heartbeat: float = HEARTBEAT,
        min_delay: float = reconnect.MIN_DELAY / 1000,
        max_delay: float = reconnect.MAX_DELAY / 1000,
        compress: bool = True,
    ) -> None:
        base = URL(url)
        if base.scheme not in ("http", "https", "ws", "wss") or base.host is None:
            raise ValueError(f"{url!r} is no server: give http://host:port or https://host")
        base = base.with_scheme({"http": "ws", "https": "wss"}.get(base.scheme, base.scheme))
        self.url = base.with_path(base.path.rstrip("/") + path).with_query(params or {})
        self.state: State = "disconnected"
        self.failure: ConnectionFailed | None = None
        self.close: Close | None = None
        """The close code and reason of the last connection."""
        self.connections = 0
        self._owner = owner
        self._token = token
        self._session = session
        self._own_session = session is None
        self._heartbeat = heartbeat
        self._delays = {"min_delay": min_delay * 1000, "max_delay": max_delay * 1000}
        self._compress = 15 if compress else 0
        self.failures = 0
        """Consecutive connections that failed or ended."""
        self._task: asyncio.Task[None] | None = None
        self._now = asyncio.Event()
        self._bye_ms: int | None = None
        self._retry_after_ms = 0
        self._reason = ""
        self._greeted = False
        self._used: str | None = None

    def connect(self) -> None:
        """Connects and stays connected; ends a wait for the next attempt."""
        self._now.set()
        if self._task is None or self._task.done():
            self.failure = None
            self._task = asyncio.create_task(self._run(), name=f"venta {self.url.path}")

    async def disconnect(self) -> None:
        """Closes the connection with a closing handshake; does not reconnect."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._task is not None:
            return  # `connect` was called meanwhile
        if self.state != "failed":
            self._become("disconnected")
        if self._own_session and self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def established(self) -> None:
        """Called by the owner once the connection is established."""
        self._greeted = True
        self._become("connected")

    # internal

    def _become(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._owner.became(state)

    async def _run(self) -> None:
        try:
            await self._stay()
        except asyncio.CancelledError:
            raise
        except BaseException as broken:  # a bug of the client: logged, so that it does not fail silently
            log.exception("the client failed")
            self._fail(Close(ABNORMAL, repr(broken)))

    async def _stay(self) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        self.failures = 0
        refused: tuple[str | None] | None = None  # the refused token, which may be None
        refusal = Close(reconnect.UNAUTHORIZED, "the token was refused")
        while True:
            self._become("connecting")
            self._bye_ms, self._retry_after_ms, self._reason, self._greeted = None, 0, "", False
            began = time.monotonic()
            token: str | None = None
            try:
                token = await self._fetch(refresh=refused is not None)
            except Exception as failed:
                close = Close(ABNORMAL, f"no token: {failed!r}")
            else:
                if refused == (token,):
                    self._fail(refusal)
                    return
                self._used = token
                close = await self._connection(self._session, token)
                refused = (self._used,) if close.code == reconnect.UNAUTHORIZED else None
            self.close = close = close._replace(reason=close.reason or self._reason)
            if close.code == reconnect.UNAUTHORIZED:
                refusal = close
            self.failures = 1 if self._greeted and time.monotonic() - began >= HEALTHY else self.failures + 1
            rule = reconnect.rule(close.code)
            if rule == "no" or (rule == "token" and self._token is None):
                self._fail(close)
                return
            wait = reconnect.wait(
                close.code,
                self.failures,
                random.random(),
                reconnect_after=self._bye_ms,
                retry_after=self._retry_after_ms,
                **self._delays,
            )
            self._now.clear()
            self._become("reconnecting")
            try:
                async with asyncio.timeout(wait / 1000):
                    await self._now.wait()
            except TimeoutError:
                continue

    def _fail(self, close: Close) -> None:
        self.failure = ConnectionFailed(close.code, close.reason)
        self._become("failed")

    async def _fetch(self, *, refresh: bool) -> str | None:
        if self._token is None or isinstance(self._token, str):
            return self._token
        token = self._token(refresh)
        if not inspect.isawaitable(token):
            return token
        async with asyncio.timeout(CONNECT_TIMEOUT):
            return await token

    async def _connection(self, session: aiohttp.ClientSession, token: str | None) -> Close:
        """Runs one connection; returns how it ended."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                ws = await session.ws_connect(
                    self.url,
                    protocols=(SUBPROTOCOL,),
                    headers={"Authorization": f"Bearer {token}"} if token is not None else None,
                    heartbeat=self._heartbeat,
                    max_msg_size=MAX_MESSAGE,
                    compress=self._compress,
                )
        except aiohttp.WSServerHandshakeError as refused:
            return Close(reconnect.code_of_status(refused.status), f"{refused.status} {refused.message}")
        except (aiohttp.ClientError, OSError, TimeoutError) as failed:
            return Close(ABNORMAL, f"no connection: {failed!r}")
        self.connections += 1
        self._owner.opened()
        tasks = [asyncio.create_task(self._listen(ws)), asyncio.create_task(self._speak(ws))]
        if token is not None and callable(self._token):
            tasks.append(asyncio.create_task(self._renew(ws, token)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await ws.close()
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass  # the connection is closed anyway
        for outcome in ended:
            if isinstance(outcome, Close):
                return outcome
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome
        return Close(ABNORMAL, "")

    async def _listen(self, ws: aiohttp.ClientWebSocketResponse) -> Close:
        while True:
            message = await ws.receive()
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                try:
                    self._took(message.data)
                except Violation as violation:
                    log.warning("against the protocol: %s", violation)
                    return Close(ABNORMAL, str(violation))
            elif message.type is aiohttp.WSMsgType.ERROR:
                return Close(ABNORMAL, repr(message.data))
            else:
                return Close(ws.close_code or ABNORMAL, str(message.extra or ""))

    def _took(self, data: str | bytes) -> None:
        try:
            message = json.loads(data)
        except ValueError as bad:
            raise Violation(f"the server sent what is not JSON ({bad}): {data[:200]!r}") from None
        if type(message) is not dict:
            raise Violation(f"the server sent {data[:200]!r}; every message is an object")
        kind = message.get("type")
        if kind == "bye":
            hint = message.get("reconnectAfterMs")
            self._bye_ms = hint if isinstance(hint, int) else None
            return
        # the server's last error may be the reason of a close
        said = kind == "error" and message.get("id") is None
        self._reason = str(message.get("message", "")) if said else ""
        self._retry_after_ms = int(message.get("retryAfterMs", 0)) if said else 0
        try:
            self._owner.took(message)
        except (KeyError, TypeError) as wrong:
            raise Violation(f"not as the protocol promises ({wrong!r}): {data[:200]!r}") from wrong

    async def _speak(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        async def send(message: bytes) -> None:
            await ws.send_str(message.decode())

        try:
            await self._owner.speak(send)
        except (aiohttp.ClientError, OSError) as gone:
            log.debug("can't send: %r", gone)
            await asyncio.sleep(CLOSE_TIMEOUT)  # a close frame that has already arrived has precedence

    async def _renew(self, ws: aiohttp.ClientWebSocketResponse, token: str) -> None:
        """Replaces a token that expires soon, on the open connection."""
        while True:
            wait = renew_in(token, time.time())
            if wait is None:
                await asyncio.Event().wait()
                return
            await asyncio.sleep(wait)
            try:
                fresh = await self._fetch(refresh=True)
            except Exception as failed:
                log.warning("no new token, the old one goes on: %r", failed)
                await asyncio.sleep(TOKEN_RETRY)
                continue
            if fresh is None or fresh == token:
                await asyncio.sleep(TOKEN_RETRY)
                continue
            self._used = token = fresh
            try:
                await ws.send_str(json.dumps({"type": "auth", "token": token}))
            except (aiohttp.ClientError, OSError):
                await asyncio.Event().wait()  # the reader returns how the connection ended
