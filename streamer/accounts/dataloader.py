"""What a vendor's connection must know of PostgreSQL, asked for many at a time: a herd is a few queries, not thousands.

No timer: the first one asks at once, and all who come while that is under way are asked for together next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from streamer.live.index import Card
from streamer.storage.store import Store, VendorRow

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST = 500
"""Keys in one query."""


class Together(Generic[K, V]):
    """Looks keys up by `find(keys)`, one query at a time; a key without an answer gets None.

    An error of `find` is raised to everyone whose key was in that query.
    """

    def __init__(self, find: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], name: str) -> None:
        self.queries = 0
        self._find = find
        self._name = name
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The answer for one key."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask(), name=self._name)
        # Who gives up waiting takes the answer from nobody else.
        return await asyncio.shield(answer)

    async def _ask(self) -> None:
        taken: dict[K, asyncio.Future[V | None]] = {}
        try:
            while self._waiting:
                taken = {key: self._waiting.pop(key) for key in list(self._waiting)[:MOST]}
                self.queries += 1
                try:
                    found = await self._find(list(taken))
                except Exception as error:
                    for answer in taken.values():
                        answer.set_exception(error)
                        answer.exception()  # all who asked may have gone
                else:
                    for key, answer in taken.items():
                        answer.set_result(found.get(key))
        finally:
            self._asking = None
            for answer in (*taken.values(), *self._waiting.values()):
                answer.cancel()  # only where this task was ended from outside
            self._waiting.clear()


class DataLoader:
    """What a Store knows of one vendor or user, for many who ask at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: Together[str, VendorRow] = Together(self._find_rows, "load vendors")
        self._owned: Together[str, list[VendorRow]] = Together(self._find_owned, "load users' vendors")
        self._stored: Together[tuple[str, int | None], int] = Together(store.newest_stored, "load newest pings")

    async def vendor(self, vendor_id: str) -> VendorRow | None:
        """This vendor, unless it or its user is deleted."""
        return await self._rows.get(vendor_id)

    async def vendors_of(self, clerk_id: str) -> list[VendorRow]:
        """The vendors of the user with this `clerkId`."""
        return await self._owned.get(clerk_id) or []

    async def durable(self, row: VendorRow) -> int | None:
        """The timestamp of a vendor's newest stored ping; its row was read a moment ago."""
        stored = await self._stored.get((row.vendor_id, row.located_at))
        return row.located_at if stored is None else max(stored, row.located_at or 0)

    @property
    def queries(self) -> int:
        """How many queries there have been."""
        return self._rows.queries + self._owned.queries + self._stored.queries

    async def _find_rows(self, vendor_ids: Sequence[str]) -> Mapping[str, VendorRow]:
        return {row.vendor_id: row for row in await self._store.cards(vendor_ids)}

    async def _find_owned(self, clerk_ids: Sequence[str]) -> Mapping[str, list[VendorRow]]:
        found: dict[str, list[VendorRow]] = {}
        for row in await self._store.vendors_of(clerk_ids):
            found.setdefault(row.clerk_id, []).append(row)
        return found


def card_of(row: VendorRow, read_at: int) -> Card:
    """Return a vendor's card as it was read at `read_at`, epoch ms."""
    return Card(read_at, row.name, row.open, row.primary_image)
