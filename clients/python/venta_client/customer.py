"""A customer's client: watches whose views stay exact over reconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import count
from typing import Any, Generic, TypeVar, cast

import aiohttp

from venta_client import reconnect
from venta_client.client import Client, ServerError
from venta_client.errors import WatchRefused
from venta_client.events import Event, difference
from venta_client.link import HEARTBEAT, Link, Send, State, Token
from venta_client.view import View
from venta_client.wire import Area, Card, Group

Item = TypeVar("Item")


class BaseWatch(Generic[Item]):
    """One watch. `fresh` is false while the view may be outdated: while disconnected, or until a move is answered."""

    def __init__(self, client: CustomerClient, id: str, wanted: dict[str, Any]) -> None:
        self.id = id
        self.fresh = False
        self.closed = False
        self._client = client
        self._wanted = wanted
        self._answered = False
        """Whether a snapshot arrived on this connection."""
        self._refused: WatchRefused | None = None
        self._news = asyncio.Event()
        self._version = 0

    @property
    def _view_now(self) -> Mapping[str, Item]:
        raise NotImplementedError

    def close(self) -> None:
        """Ends the watch and its iterators."""
        if not self.closed:
            self.closed = True
            self.fresh = False
            self._client._drop(self)
            self._news.set()

    async def ready(self) -> Mapping[str, Item]:
        """Returns the view once it is exact.

        Raises:
            WatchRefused: the server refused the watch.
            ConnectionFailed: the connection failed for good.
        """
        while not self.fresh:
            self._raise()
            if self.closed:
                raise RuntimeError(f"the watch {self.id!r} is closed")
            self._news.clear()
            await self._news.wait()
        return self._view_now

    async def views(self) -> AsyncIterator[Mapping[str, Item]]:
        """Yields the view after each change; a slow app gets only the newest view."""
        seen = 0
        while not self.closed:
            if self.fresh and self._version != seen:
                seen = self._version
                yield self._view_now
                continue
            self._raise()
            self._news.clear()
            await self._news.wait()

    # called by the client

    def _raise(self) -> None:
        if self._refused is not None:
            raise self._refused
        if self._client.failure is not None:
            raise self._client.failure

    def _become(self, wanted: dict[str, Any]) -> None:
        self._wanted = wanted
        self.fresh = False
        self._refused = None
        self._client._ask(self)

    def _opened(self) -> None:
        self._answered = self.fresh = False  # the app keeps the old view until the snapshot
        self._refused = None

    def _took(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "error":
            self._refused = WatchRefused(message["code"], message["message"])
        elif kind == "snapshot":
            self._refused = None
            self._answered = self.fresh = True
            self._version += 1
            self._snapshot(message)
        elif kind == "update" and self._answered:  # an update before the snapshot is of an earlier watch with this id
            self._version += 1
            self._update(message)
        self._news.set()

    def _snapshot(self, message: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(self, message: dict[str, Any]) -> None:
        raise NotImplementedError


class Watch(BaseWatch[Card]):
    """A watched area or list: `vendors` is the view, by vendorId; iterate for events.

    Events lead from the last reported state to the current one: a slow app misses steps in between, never the result.
    """

    def __init__(self, client: CustomerClient, id: str, wanted: dict[str, Any]) -> None:
        super().__init__(client, id, wanted)
        self.vendors: Mapping[str, Card] = {}
        self._view = View()
        self._reported: dict[str, Card] = {}
        self._dirty: dict[str, None] = {}

    @property
    def _view_now(self) -> Mapping[str, Card]:
        return self.vendors

    def move(
        self,
        area: Area | None = None,
        *,
        vendors: Sequence[str] | None = None,
        open: bool | None = None,
        interval: int | None = None,
    ) -> None:
        """Changes what is watched; the old view stays until the snapshot."""
        self._become(wanting(area, vendors, open=open, interval=interval))

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self.closed:
            while self._dirty:
                vendor_id = next(iter(self._dirty))
                del self._dirty[vendor_id]
                event = difference(self._reported.get(vendor_id), self.vendors.get(vendor_id))
                if event is not None:
                    if event.kind == "left":
                        del self._reported[vendor_id]
                    else:
                        self._reported[vendor_id] = event.card
                    yield event
            self._raise()
            if not self._dirty:
                self._news.clear()
                await self._news.wait()

    def _opened(self) -> None:
        super()._opened()
        self._view = View()

    def _snapshot(self, message: dict[str, Any]) -> None:
        before = self.vendors
        self._view.snapshot(message["vendors"])
        self.vendors = cast(dict[str, Card], self._view.vendors)
        self._touched([*before, *self.vendors])

    def _update(self, message: dict[str, Any]) -> None:
        entered, moved, left = message.get("entered", []), message.get("moved", []), message.get("left", [])
        self._view.vendors = dict(self._view.vendors)  # the app may be iterating over the old dict
        self._view.update(entered, moved, left)
        self.vendors = cast(dict[str, Card], self._view.vendors)
        self._touched([*(card["vendorId"] for card in entered), *(fix["vendorId"] for fix in moved), *left])

    def _touched(self, vendor_ids: Sequence[str]) -> None:
        for vendor_id in vendor_ids:
            if vendor_id in self._reported or vendor_id in self.vendors:
                self._dirty[vendor_id] = None
            else:
                self._dirty.pop(vendor_id, None)  # entered and left between two reports


class CountsWatch(BaseWatch[Group]):
    """Counts in an area, for maps zoomed out: `groups` are vendors near each other, by the group's name."""

    def __init__(self, client: CustomerClient, id: str, wanted: dict[str, Any]) -> None:
        super().__init__(client, id, wanted)
        self.groups: Mapping[str, Group] = {}

    @property
    def _view_now(self) -> Mapping[str, Group]:
        return self.groups

    def move(
        self, area: Area, *, open: bool | None = None, interval: int | None = None, detail: int | None = None
    ) -> None:
        """Counts in another area; the old groups stay until the snapshot."""
        self._become(counting(area, open, interval, detail))

    def _snapshot(self, message: dict[str, Any]) -> None:
        self.groups = {}
        self._update(message)

    def _update(self, message: dict[str, Any]) -> None:
        changed = {group["group"]: group for group in message["groups"]}
        groups = {**self.groups, **changed}
        self.groups = {name: group for name, group in groups.items() if group["count"] > 0}


class CustomerClient(Client):
    """Watches areas and vendors, an async context manager.

    Args:
        url: The server, http(s)://host.
        token: A token, or a function `token(refresh)`; `refresh`: the last one was refused or expires soon.
        on_state: Called with each new state of the connection.
        on_error: Called with each error of the server.
        heartbeat: Seconds without a message after which a ping frame is sent.
        min_delay: Maximum first delay before reconnecting, s; each failure doubles it.
        max_delay: Maximum delay before reconnecting, s.
        compress: Whether to offer permessage-deflate.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        on_state: Callable[[State], None] | None = None,
        on_error: Callable[[ServerError], None] | None = None,
        session: aiohttp.ClientSession | None = None,
        heartbeat: float = HEARTBEAT,
        min_delay: float = reconnect.MIN_DELAY / 1000,
        max_delay: float = reconnect.MAX_DELAY / 1000,
        compress: bool = True,
    ) -> None:
        super().__init__(state=on_state, error=on_error)
        self.watches: dict[str, BaseWatch[Any]] = {}
        self._numbers = count(1)
        self._unsent: dict[str, bytes] = {}
        self._requested: set[str] = set()
        """Ids of the watches requested on this connection."""
        self._work = asyncio.Event()
        self._link = Link(
            url,
            "/v1/watch",
            self,
            token=token,
            session=session,
            heartbeat=heartbeat,
            min_delay=min_delay,
            max_delay=max_delay,
            compress=compress,
        )

    async def disconnect(self) -> None:
        """Closes the connection and all watches."""
        await super().disconnect()
        for watch in tuple(self.watches.values()):
            watch.close()

    def watch(
        self,
        area: Area | None = None,
        *,
        vendors: Sequence[str] | None = None,
        open: bool | None = None,
        interval: int | None = None,
        id: str | None = None,
    ) -> Watch:
        """Watches an area or some vendors; `open`: only open ones, `interval`: minimum ms between two updates."""
        return self._begin(Watch(self, self._name(id), wanting(area, vendors, open=open, interval=interval)))

    def counts(
        self,
        area: Area,
        *,
        open: bool | None = None,
        interval: int | None = None,
        detail: int | None = None,
        id: str | None = None,
    ) -> CountsWatch:
        """Counts vendors in an area, up to the whole world, in at most about `detail` groups (16 to 1,000)."""
        return self._begin(CountsWatch(self, self._name(id), counting(area, open, interval, detail)))

    # called by the link and the watches

    def opened(self) -> None:
        self._unsent.clear()
        self._requested.clear()
        for watch in self.watches.values():
            watch._opened()
            self._ask(watch)
        # A connection that lacks a required token gets no message before it is closed.
        self._link.established()

    def took(self, message: dict[str, Any]) -> None:
        watch = self.watches.get(str(message.get("id")))
        if message.get("type") == "error":
            error = ServerError.of(message)
            self._error(error)
            if watch is not None and error.retry_after is not None:
                asyncio.get_running_loop().call_later(error.retry_after / 1000, self._ask, watch)
                return
        if watch is not None:
            watch._took(message)

    async def speak(self, send: Send) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._unsent:
                id = next(iter(self._unsent))
                (self._requested.add if id in self.watches else self._requested.discard)(id)
                await send(self._unsent.pop(id))

    def became(self, state: State) -> None:
        for watch in self.watches.values():
            if state != "connected":
                watch.fresh = False
            watch._news.set()
        super().became(state)

    def _name(self, id: str | None) -> str:
        id = id if id is not None else f"w{next(self._numbers)}"
        if id in self.watches:
            raise ValueError(f"there is a watch {id!r} already: move it, or close it first")
        return id

    def _begin(self, watch: AnyWatch) -> AnyWatch:
        self.watches[watch.id] = watch
        self._ask(watch)
        return watch

    def _ask(self, watch: BaseWatch[Any]) -> None:
        if not watch.closed:
            self._send(watch.id, {**watch._wanted, "type": "watch", "id": watch.id})

    def _drop(self, watch: BaseWatch[Any]) -> None:
        self.watches.pop(watch.id, None)
        self._unsent.pop(watch.id, None)
        if watch.id in self._requested:
            self._send(watch.id, {"type": "unwatch", "id": watch.id})

    def _send(self, id: str, message: dict[str, Any]) -> None:
        """Sends a message once connected; the last message of a watch replaces earlier ones."""
        self._unsent[id] = json.dumps(message).encode()
        self._work.set()


AnyWatch = TypeVar("AnyWatch", bound=BaseWatch[Any])


def wanting(area: Area | None, vendors: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """Returns the members of a watch message; raises ValueError unless exactly one of area and vendors is given."""
    if (area is None) == (vendors is None):
        raise ValueError("watch an area or a list of vendors, one of the two")
    wanted: dict[str, Any] = {"area": area} if area is not None else {"vendors": list(vendors or ())}
    return wanted | {name: value for name, value in options.items() if value is not None}


def counting(area: Area, open: bool | None, interval: int | None, detail: int | None) -> dict[str, Any]:
    """Returns the members of a watch message for counts."""
    return wanting(area, None, open=open, interval=interval, detail=detail) | {"as": "counts"}
