"""Detects users and vendors that another service deletes, transfers or changes.

Audit triggers record each change in its own transaction. Each process reads the new audit entries, a query that costs
almost nothing while nothing changes, and then reads the rows that concern it.

Audit ids rise, but transactions do not commit in the order of their ids: an entry with a lower id may appear later. So
each poll reads the entries of all transactions that were not finished at the previous poll. Ids only exclude entries
that are certainly known: up to the newest id of an earlier poll that began before every transaction running now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import structlog

from streamer.accounts.dataloader import card_of
from streamer.errors import DatabaseError, Unavailable
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors
from streamer.storage.store import Change, Store

log = structlog.get_logger()

PAGE = 5000
"""Changes per query."""
IDS_IN_FLIGHT = 10_000
"""How far below the newest id the id of a transaction that runs at startup may be."""


class AccountEvents(Protocol):
    """Receives what the poller finds."""

    def vendors_deleted(self, vendor_ids: Collection[str]) -> None: ...

    def vendors_owned(self, owners: Mapping[str, str]) -> None:
        """Current owners (`users.clerkId`) of vendors that changed."""

    def users_deleted(self, clerk_ids: Collection[str]) -> None: ...


class ChangePoller:
    """Polls every `interval` seconds. `deleted_users` holds the `clerkId` of every user known to be deleted."""

    def __init__(
        self,
        store: Store,
        local_vendors: LocalVendors,
        index: LiveIndex,
        clock: Callable[[], int],
        events: AccountEvents,
        *,
        interval: float,
    ) -> None:
        self.deleted_users: set[str] = set()
        self.cause: str | None = None
        """Why the last poll failed; None when it succeeded."""
        self.polls = 0
        self.generation = 0
        """Incremented by each poll that found a change: rows read before that may be outdated."""
        self._store = store
        self._local_vendors = local_vendors
        self._index = index
        self._clock = clock
        self._events = events
        self._interval = interval
        self._started = False
        self._floor = 0
        """Entries up to this id are known."""
        self._since = 0
        """Entries of transactions before this one are known."""
        self._earlier = (0, 0)
        """The newest id, and the next transaction, at an earlier poll."""
        self._seen: set[int] = set()

    async def run(self) -> None:
        """Polls forever."""
        while True:
            try:
                await self.poll()
                self.cause = None
            except Unavailable as away:
                # No warning: the batcher logs an outage.
                log.debug("cannot poll for deleted users and vendors", cause=str(away))
                self.cause = str(away)
            except DatabaseError as error:
                if self.cause != str(error):
                    log.warning("cannot poll for deleted users and vendors", cause=str(error))
                self.cause = str(error)
            await asyncio.sleep(self._interval)

    async def poll(self) -> None:
        """Applies all changes since the last poll."""
        if not self._started:
            now = await self._store.changes(2**62, 0, 1)
            self._floor = max(0, now.newest - IDS_IN_FLIGHT)
            self._since, self._earlier = now.oldest, (now.newest, now.next)
            self.deleted_users.update(await self._store.deleted_users())
            self._started = True
        first = page = await self._store.changes(self._floor, self._since, PAGE)
        while True:
            new = [change for change in page.changes if change.id not in self._seen]
            if new:
                await self._apply(new)
                self._seen.update(change.id for change in new)
            if len(page.changes) < PAGE:
                break
            page = await self._store.changes(page.changes[-1].id, self._since, PAGE)
        self._since = first.oldest
        if first.oldest >= self._earlier[1]:
            self._floor = max(self._floor, self._earlier[0])
            self._earlier = (first.newest, first.next)
            self._seen = {id for id in self._seen if id > self._floor}
        self.polls += 1

    async def _apply(self, changes: Sequence[Change]) -> None:
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
        living = await store.existing_users(list(clerk_ids)) if clerk_ids else set()
        read_at = self._clock()
        known = [id for id in vendor_ids if id is not None and (id in local_vendors or id in index.vendors)]
        rows = {row.vendor_id: row for row in await store.cards(known)} if known else {}
        now = self._clock()
        # No await from here on: a connection that opens now is either found here or sees the new generation.
        self.generation += 1
        for row in rows.values():
            local_vendors.card(row.vendor_id, card_of(row, read_at), now)
        if deleted := [vendor_id for vendor_id in known if vendor_id not in rows]:
            log.info("vendors were deleted", vendors=deleted[:10], count=len(deleted))
            self._events.vendors_deleted(deleted)
        if rows:
            self._events.vendors_owned({row.vendor_id: row.clerk_id for row in rows.values()})
        self.deleted_users -= living
        if gone := clerk_ids - living - self.deleted_users:
            self.deleted_users |= gone
            self._events.users_deleted(gone)
