"""Coalesced reads: what connections need from PostgreSQL, many keys per query.

There is no timer. The first key starts a query at once; keys that arrive while it runs share the next one. So a
reconnect storm costs a few queries, not one per client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from streamer.live.vendor import Card
from streamer.storage.store import Store, VendorRow

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_KEYS = 500
"""Keys of one query."""


class BatchLoader(Generic[K, V]):
    """Looks up keys with `find(keys)`, one query at a time; an error of `find` goes to every caller of that query."""

    def __init__(self, find: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], name: str) -> None:
        self._find = find
        self._name = name
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """Returns the value of one key; None when there is none."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            if self._task is None:
                self._task = asyncio.create_task(self._load(), name=self._name)
        # A caller that is cancelled must not cancel the answer for the others.
        return await asyncio.shield(answer)

    async def _load(self) -> None:
        batch: dict[K, asyncio.Future[V | None]] = {}
        try:
            while self._waiting:
                batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:MAX_KEYS]}
                try:
                    found = await self._find(list(batch))
                except Exception as error:
                    for answer in batch.values():
                        answer.set_exception(error)
                        answer.exception()  # marks it as seen: every caller may have been cancelled
                else:
                    for key, answer in batch.items():
                        answer.set_result(found.get(key))
        finally:
            self._task = None
            for answer in (*batch.values(), *self._waiting.values()):
                answer.cancel()  # no effect on answers that are done
            self._waiting.clear()


class DataLoader:
    """Coalesces a Store's reads of single vendors and users."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: BatchLoader[str, VendorRow] = BatchLoader(self._find_rows, "load vendors")
        self._owned: BatchLoader[str, list[VendorRow]] = BatchLoader(self._find_owned, "load users' vendors")
        self._stored: BatchLoader[tuple[str, int | None], int] = BatchLoader(store.newest_stored, "load newest pings")

    async def vendor(self, vendor_id: str) -> VendorRow | None:
        """Returns a vendor; None when it or its user is deleted."""
        return await self._rows.get(vendor_id)

    async def vendors_of(self, clerk_id: str) -> list[VendorRow]:
        """Returns the vendors of a user (`users.clerkId`)."""
        return await self._owned.get(clerk_id) or []

    async def durable(self, row: VendorRow) -> int | None:
        """Returns the timestamp (epoch ms) of a vendor's newest stored ping; `row` must have been read just before."""
        return await self._stored.get((row.vendor_id, row.located_at))

    async def _find_rows(self, vendor_ids: Sequence[str]) -> Mapping[str, VendorRow]:
        return {row.vendor_id: row for row in await self._store.cards(vendor_ids)}

    async def _find_owned(self, clerk_ids: Sequence[str]) -> Mapping[str, list[VendorRow]]:
        found: dict[str, list[VendorRow]] = {}
        for row in await self._store.vendors_of(clerk_ids):
            found.setdefault(row.clerk_id, []).append(row)
        return found


def card_of(row: VendorRow, read_at: int) -> Card:
    """Return a vendor's card as it was read at `read_at`, epoch ms."""
    return Card(read_at, row.name, row.open, row.primary_image, row.hidden)
