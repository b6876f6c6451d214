"""A customer's connection: watches whose views are kept true, over any number of connections."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self, cast

import aiohttp

from venta_client.errors import Ended, WatchRefused
from venta_client.events import Event, difference
from venta_client.link import HEARTBEAT, Link, Send, State, Token
from venta_client.view import View
from venta_client.wire import Area, Card

log = logging.getLogger("venta_client")


class Watch:
    """One watched area or list: `vendors` is what is inside, by vendorId; iterate for what is new.

    `fresh` is false while `vendors` may be old: not connected, or moved and not yet answered. Iterating tells what
    leads from what was told before to what is so now: whoever is slow misses steps in between, never the outcome.
    """

    def __init__(self, client: CustomerClient, id: str, wanted: dict[str, Any]) -> None:
        self.id = id
        self.vendors: Mapping[str, Card] = {}
        self.fresh = False
        self.closed = False
        self._client = client
        self._wanted = wanted
        self._view = View()
        self._refused: WatchRefused | None = None
        self._told: dict[str, Card] = {}
        self._dirty: dict[str, None] = {}
        self._news = asyncio.Event()

    def move(
        self,
        area: Area | None = None,
        *,
        vendors: Sequence[str] | None = None,
        open: bool | None = None,
        interval: int | None = None,
    ) -> None:
        """Watch something else under the same name; what the view holds stays until the snapshot comes."""
        self._wanted = wanting(area, vendors, open, interval)
        self.fresh = False
        self._refused = None
        self._client._ask(self)

    def close(self) -> None:
        """End the watch; iterating it ends."""
        if not self.closed:
            self.closed = True
            self.fresh = False
            self._client._drop(self)
            self._news.set()

    async def exact(self) -> Mapping[str, Card]:
        """The view, once it is exact; WatchRefused or Ended when it won't be."""
        while not self.fresh:
            self._raise()
            if self.closed:
                raise RuntimeError(f"the watch {self.id!r} is closed")
            self._news.clear()
            await self._news.wait()
        return self.vendors

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self.closed:
            while self._dirty:
                vendor_id = next(iter(self._dirty))
                del self._dirty[vendor_id]
                event = difference(self._told.get(vendor_id), self.vendors.get(vendor_id))
                if event is not None:
                    if event.kind == "left":
                        del self._told[vendor_id]
                    else:
                        self._told[vendor_id] = event.card
                    yield event
            self._raise()
            if not self._dirty:
                self._news.clear()
                await self._news.wait()

    # of the client

    def _raise(self) -> None:
        refused, self._refused = self._refused, None
        if refused is not None:
            raise refused
        if self._client.ended is not None:
            raise self._client.ended

    def _opened(self) -> None:
        self._view = View()  # the strict one is this connection's; what the app sees stays until the snapshot
        self.fresh = False

    def _took(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "snapshot":
            self._refused = None
            before = self.vendors
            self._view.snapshot(message["vendors"])
            self.vendors = cast(dict[str, Card], self._view.vendors)
            self.fresh = True
            self._touched([*before, *self.vendors])
        elif kind == "update" and self._view.snapshots:  # one before that is of a watch that had this id
            entered, moved, left = message.get("entered", []), message.get("moved", []), message.get("left", [])
            self._view.update(entered, moved, left)
            self._touched([*(card["vendorId"] for card in entered), *(fix["vendorId"] for fix in moved), *left])
        elif kind == "error":
            self._refused = WatchRefused(message["code"], message["message"])
        self._news.set()

    def _touched(self, vendor_ids: Sequence[str]) -> None:
        for vendor_id in vendor_ids:
            if vendor_id in self._told or vendor_id in self.vendors:
                self._dirty[vendor_id] = None
            else:
                self._dirty.pop(vendor_id, None)  # came and went untold


class CustomerClient:
    """Watches areas and vendors; use it as an async context manager. `on_state(state)` tells of the connection."""

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        on_state: Callable[[State], None] | None = None,
        session: aiohttp.ClientSession | None = None,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        self.watches: dict[str, Watch] = {}
        self._on_state = on_state
        self._numbers = count(1)
        self._unsaid: dict[str, bytes] = {}
        self._work = asyncio.Event()
        self._link = Link(url, "/v1/watch", self, token=token, session=session, heartbeat=heartbeat)

    async def __aenter__(self) -> Self:
        self._link.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def state(self) -> State:
        """Where the connection is."""
        return self._link.state

    @property
    def ended(self) -> Ended | None:
        """Why the client does not come back; None while it does."""
        return self._link.ended

    async def close(self) -> None:
        """End the connection and every watch."""
        await self._link.stop()
        for watch in tuple(self.watches.values()):
            watch.close()

    def retry(self) -> None:
        """Try to connect now rather than after the wait."""
        self._link.retry()

    def watch(
        self,
        area: Area | None = None,
        *,
        vendors: Sequence[str] | None = None,
        open: bool | None = None,
        interval: int | None = None,
        id: str | None = None,
    ) -> Watch:
        """Watch an area or some vendors: all, or only those that are `open`; no more often than each `interval` ms."""
        id = id if id is not None else f"w{next(self._numbers)}"
        if id in self.watches:
            raise ValueError(f"there is a watch {id!r} already: move it, or close it first")
        watch = self.watches[id] = Watch(self, id, wanting(area, vendors, open, interval))
        self._ask(watch)
        return watch

    # of the link and the watches

    def opened(self) -> None:
        self._unsaid.clear()
        for watch in self.watches.values():
            watch._opened()
            self._ask(watch)
        # One that needs a token and has none hears nothing until it is closed.
        self._link.stands()

    def took(self, message: dict[str, Any]) -> None:
        watch = self.watches.get(str(message.get("id")))
        if message.get("type") == "error":
            log.warning("the server says %s: %s", message.get("code"), message.get("message"))
            if watch is not None and message.get("retryAfterMs") is not None:
                asyncio.get_running_loop().call_later(message["retryAfterMs"] / 1000, self._ask, watch)
                return
        if watch is not None:
            watch._took(message)

    async def speak(self, send: Send) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._unsaid:
                id = next(iter(self._unsaid))
                await send(self._unsaid.pop(id))

    def became(self, state: State) -> None:
        for watch in self.watches.values():
            if state != "open":
                watch.fresh = False
            watch._news.set()
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception:  # the app's own mistake must not cost it the connection
                log.exception("%r failed", self._on_state)

    def _ask(self, watch: Watch) -> None:
        if not watch.closed:
            self._say(watch.id, {**watch._wanted, "type": "watch", "id": watch.id})

    def _drop(self, watch: Watch) -> None:
        self.watches.pop(watch.id, None)
        if self._unsaid.pop(watch.id, None) is None or watch._view.snapshots:
            self._say(watch.id, {"type": "unwatch", "id": watch.id})

    def _say(self, id: str, message: dict[str, Any]) -> None:
        """Say it on the connection, once there is one; the last word about a watch replaces those before."""
        self._unsaid[id] = json.dumps(message).encode()
        self._work.set()


def wanting(
    area: Area | None, vendors: Sequence[str] | None, open: bool | None, interval: int | None
) -> dict[str, Any]:
    """What a watch message asks for; ValueError unless it is one of the two."""
    if (area is None) == (vendors is None):
        raise ValueError("watch an area or a list of vendors, one of the two")
    wanted: dict[str, Any] = {"area": area} if area is not None else {"vendors": list(vendors or ())}
    if open is not None:
        wanted["open"] = open
    if interval is not None:
        wanted["interval"] = interval
    return wanted
