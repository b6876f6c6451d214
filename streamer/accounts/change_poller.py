"""Who is still there: sees users and vendors that are deleted, change hands or change their card, in any process.

The audit's triggers note each change in its transaction. Each process reads what is new there, a query that costs next
to nothing while nothing changes, and looks closer at the rows that concern it.

Ids rise, but transactions don't commit in their order: an id lower than one already read may appear later. So what is
read is not "after the last id" but "of transactions that were not over at the last look"; ids serve only to leave out
what is surely known, which is all up to the newest id of an earlier look that began when every transaction now running
had not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog

from streamer.accounts.dataloader import card_of
from streamer.errors import DatabaseError, Unavailable
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors
from streamer.storage.store import Change, Store

log = structlog.get_logger()

PAGE = 5000
"""Changes that are looked at in one turn."""
BACK = 10_000
"""Ids below the newest that a transaction which runs when the process starts may have got."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Who is told: of vendors that are gone, of vendors' owners as they are now, of users who are gone."""

    vendors_gone: Callable[[Collection[str]], None]
    owners: Callable[[Mapping[str, str]], None]
    users_gone: Callable[[Collection[str]], None]


class ChangePoller:
    """Looks for changes every `interval` seconds; `deleted_users` are those known to be gone, by `clerkId`."""

    def __init__(
        self,
        store: Store,
        local_vendors: LocalVendors,
        index: LiveIndex,
        clock: Callable[[], int],
        *,
        interval: float,
        heard: Heard,
    ) -> None:
        self.deleted_users: set[str] = set()
        self.looks = 0
        self.taken = 0
        """Rises with each look that found something: what was read before it rose may be older than what was told."""
        self._store = store
        self._local_vendors = local_vendors
        self._index = index
        self._clock = clock
        self._interval = interval
        self._heard = heard
        self._begun = False
        self._floor = 0
        self._since = 0
        """Changes of transactions before this one are known."""
        self._mark = (0, 0)
        """The newest id and the next transaction as of an earlier look."""
        self._seen: set[int] = set()

    async def run(self) -> None:
        """Look for ever; while PostgreSQL is away nothing is known to have changed."""
        told = False
        while True:
            try:
                await self.look()
                told = False
            except (Unavailable, DatabaseError) as away:
                if not told:
                    log.warning("whether users or vendors were deleted can't be seen just now", cause=str(away))
                told = True
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Take in what changed since the last look."""
        if not self._begun:
            now = await self._store.changes(2**62, 0, 1)
            self._floor = max(0, now.newest - BACK)
            self._since, self._mark = now.oldest, (now.newest, now.next)
            self.deleted_users.update(await self._store.deleted_users())
            self._begun = True
        first = page = await self._store.changes(self._floor, self._since, PAGE)
        while True:
            new = [change for change in page.changes if change.id not in self._seen]
            if new:
                await self._take(new)
                self._seen.update(change.id for change in new)
            if len(page.changes) < PAGE:
                break
            page = await self._store.changes(page.changes[-1].id, self._since, PAGE)
        self._since = first.oldest
        if first.oldest >= self._mark[1]:
            self._floor = max(self._floor, self._mark[0])
            self._mark = (first.newest, first.next)
            self._seen = {id for id in self._seen if id > self._floor}
        self.looks += 1

    async def _take(self, changes: Sequence[Change]) -> None:
        store, local_vendors, index = self._store, self._local_vendors, self._index
        vendor_ids = {change.row_id for change in changes if change.table == "vendors"}
        user_ids = {change.row_id for change in changes if change.table == "users"}
        clerk_ids = {change.clerk_id for change in changes if change.clerk_id is not None}
        if None in vendor_ids or None in user_ids:  # TRUNCATE names no row
            vendor_ids.update(local_vendors.sockets, index.vendors)
        if named := [user_id for user_id in user_ids if user_id is not None]:
            for clerk_id, vendor_id in await store.users(named):
                clerk_ids.add(clerk_id)
                vendor_ids.add(vendor_id)
        alive = await store.living_users(list(clerk_ids)) if clerk_ids else set()
        asked = self._clock()
        here = [id for id in vendor_ids if id is not None and (id in local_vendors or id in index.vendors)]
        rows = {row.vendor_id: row for row in await store.cards(here)} if here else {}
        now = self._clock()
        # From here on nothing is waited for: who connects now is found, or finds this.
        self.taken += 1
        for row in rows.values():
            local_vendors.card(row.vendor_id, card_of(row, asked), now)
        if gone := [vendor_id for vendor_id in here if vendor_id not in rows]:
            log.info("vendors were deleted", vendors=gone[:10], count=len(gone))
            self._heard.vendors_gone(gone)
        if rows:
            self._heard.owners({row.vendor_id: row.clerk_id for row in rows.values()})
        self.deleted_users -= alive
        if out := clerk_ids - alive - self.deleted_users:
            self.deleted_users |= out
            self._heard.users_gone(out)
