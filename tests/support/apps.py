"""A vendor app and a customer app for tests, on real sockets, by the protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
import jsonschema_rs
import orjson

from streamer.accounts.tokens import make_token
from streamer.protocol import asyncapi, schemas
from streamer.settings import Settings

SECRET = "a-secret-for-tests-a-secret-for-tests"
WITHIN = 60.0
"""Seconds that a test waits; far more than needed, so that a slow machine does not fail."""


def described(names: tuple[str, ...]) -> dict[str, jsonschema_rs.Validator]:
    """Validators of messages by the AsyncAPI document, without additional members."""
    shapes = closed(schemas.schemas(Settings.model_construct()))
    whole = {"components": {"schemas": shapes}}
    return {name: jsonschema_rs.validator_for({**whole, **schemas.ref(name)}) for name in names}


def closed(schema: Any) -> Any:
    """The same schema without additional members."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    if inner.get("type") == "object" and isinstance(inner.get("properties"), dict):
        inner["additionalProperties"] = False
    return inner


DESCRIBED = {"/v1/vendor": described(asyncapi.VENDOR_RECEIVES), "/v1/watch": described(asyncapi.CUSTOMER_RECEIVES)}


def now_ms() -> int:
    """Returns the current time, epoch milliseconds."""
    return time.time_ns() // 1_000_000


async def eventually(holds: Callable[[], bool | Awaitable[bool]], what: str, within: float = WITHIN) -> None:
    """Waits until a condition is true; fails with `what` on timeout."""
    until = time.monotonic() + within
    while True:
        answer = holds()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < until, f"not within {within} s: {what}"
        await asyncio.sleep(0.01)


class App:
    """One WebSocket; every message received is kept in `messages`."""

    def __init__(self, url: str, path: str, clerk_id: str | None, **params: str) -> None:
        self.messages: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.undescribed: list[str] = []
        """Received messages that violate the AsyncAPI document."""
        self._described = DESCRIBED[path]
        self._url = url.replace("http", "ws", 1) + path
        self._params = params
        self.headers = {"Authorization": f"Bearer {make_token(SECRET, clerk_id, 600)}"} if clerk_id else {}
        self.protocols: tuple[str, ...] = ()
        self.answers_pings = True
        self._session: aiohttp.ClientSession | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        self.socket = await self._session.ws_connect(
            self._url,
            params=self._params,
            headers=self.headers,
            protocols=self.protocols,
            max_msg_size=0,
            autoping=self.answers_pings,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        if kind is None:
            assert not self.undescribed

    async def close(self) -> None:
        """Closes gracefully."""
        assert self._session is not None
        assert self._reader is not None
        await self.socket.close()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._session.close()

    async def cut(self) -> None:
        """Aborts the connection without a close frame, like a phone in a tunnel."""
        transport = self.socket.get_extra_info("socket")
        assert transport is not None
        assert self.socket._response.connection is not None
        assert self.socket._response.connection.transport is not None
        self.socket._response.connection.transport.abort()

    @property
    def reading(self) -> bool:
        """Whether the app still handles messages: false at the end, and after one that contradicted its view."""
        return self._reader is not None and not self._reader.done()

    async def send(self, message: Any) -> None:
        """Sends a message as JSON, or bytes unchanged."""
        if isinstance(message, bytes):
            await self.socket.send_bytes(message)
        else:
            await self.socket.send_str(orjson.dumps(message).decode())

    async def expect(self, kind: str, within: float = WITHIN, **fields: Any) -> dict[str, Any]:
        """Waits for the first message of a type with these members, and returns it."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [m for m in self.messages if m["type"] == kind and all(m.get(k) == v for k, v in fields.items())]
            return bool(found)

        await eventually(there, f"a {kind} message with {fields}, only {self.messages[-5:]}", within)
        return found[0]

    async def closed(self, within: float = WITHIN) -> int:
        """Waits until the server closes, and returns the close code."""
        await eventually(lambda: self.close_code is not None, f"a close, only {self.messages[-5:]}", within)
        assert self.close_code is not None
        return self.close_code

    async def _read(self) -> None:
        async for message in self.socket:
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                continue  # a ping of the server, which may even come before `hello`
            decoded = orjson.loads(message.data)
            self._compare(decoded)
            self.took(decoded)
        self.close_code = self.socket.close_code

    def _compare(self, message: dict[str, Any]) -> None:
        validator = self._described.get(message["type"])
        if validator is None:
            self.undescribed.append(f"no {message['type']!r} is described: {message}")
        elif not validator.is_valid(message):
            self.undescribed += [
                f"{error.message} at {error.instance_path}" for error in validator.iter_errors(message)
            ]

    def took(self, message: dict[str, Any]) -> None:
        """Called with each message."""
        self.messages.append(message)


class VendorApp(App):
    """A vendor's phone."""

    def __init__(self, url: str, clerk_id: str | None, vendor_id: str | None = None, **params: str) -> None:
        super().__init__(url, "/v1/vendor", clerk_id, **params, **({"vendorId": vendor_id} if vendor_id else {}))

    async def ping(self, lat: float, long: float, **fields: Any) -> None:
        """Reports a position."""
        await self.send({"type": "ping", "lat": lat, "long": long, **fields})

    async def acked(self, seq: int, within: float = WITHIN) -> None:
        """Waits until a seq is acked."""
        await eventually(
            lambda: any(m["type"] == "ack" and m["seq"] >= seq for m in self.messages),
            f"an ack of {seq}, only {self.messages[-5:]}",
            within,
        )


class CustomerApp(App):
    """A customer's phone; `views` are its views by watch id, maintained by the protocol."""

    def __init__(self, url: str, clerk_id: str | None = None, **params: str) -> None:
        super().__init__(url, "/v1/watch", clerk_id, **params)
        self.views: dict[str, dict[str, dict[str, Any]]] = {}

    async def watch(self, id: str, area: dict[str, Any] | None = None, **fields: Any) -> None:
        """Starts a watch of an area, or of `fields`, and waits for the snapshot."""
        before = sum(m["type"] == "snapshot" and m["id"] == id for m in self.messages)
        await self.send({"type": "watch", "id": id, **({"area": area} if area else {}), **fields})
        await eventually(
            lambda: sum(m["type"] == "snapshot" and m["id"] == id for m in self.messages) > before,
            f"a snapshot of {id}, only {self.messages[-5:]}",
        )

    def took(self, message: dict[str, Any]) -> None:
        super().took(message)
        if message["type"] == "snapshot":
            self.views[message["id"]] = {card["vendorId"]: card for card in message["vendors"]}
        elif message["type"] == "update":
            view = self.views[message["id"]]
            for card in message.get("entered", ()):
                view[card["vendorId"]] = card
            for fix in message.get("moved", ()):
                card = view[fix["vendorId"]]  # a KeyError here is a wrong view
                card.update(fix)
                for optional in ("heading", "speed"):
                    if optional not in fix:
                        card.pop(optional, None)
            for vendor_id in message.get("left", ()):
                del view[vendor_id]

    async def sees(self, id: str, positions: dict[str, tuple[float, float]], within: float = WITHIN) -> None:
        """Waits until a view has exactly these vendors at these (lat, long)."""

        def holds() -> bool:
            return {v: (c["lat"], c["long"]) for v, c in self.views.get(id, {}).items()} == positions

        await eventually(holds, f"{id} showing {positions}", within)


def circle(lat: float, long: float, radius: float) -> dict[str, Any]:
    """Returns a circle in wire format."""
    return {"center": {"lat": lat, "long": long}, "radius": radius}
