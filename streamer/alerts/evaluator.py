"""Evaluates this process's alerts: changes of the live index become new states and events in PostgreSQL.

One process evaluates an alert: slots of alerts are distributed over the processes with a heartbeat in PostgreSQL. When
a process is killed, others take over its slots within seconds: they read the last state of each vendor, and compare it
with the live index. If two processes evaluate one alert for a moment, no event is doubled: an event is stored only if
the stored state is the one that the process knew (`storage.alert_sql.COMMIT`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import count
from operator import is_
from typing import Any

import structlog

from streamer.alerts.alert import Alert, Needs, State
from streamer.alerts.rules import OUTSIDE, Seen, begin, quiet_until, step
from streamer.alerts.share import slots_of
from streamer.alerts.state_writer import StateWriter
from streamer.alerts.tracker import Tracker
from streamer.broker.broker import Broker
from streamer.counters import Counters
from streamer.errors import DatabaseError, StreamerError, Unavailable
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.vendor import Before, Card, Vendor
from streamer.protocol.alerts import encode_event, stored_definition
from streamer.storage.alerts import PAGE, AlertStore, Evaluated

log = structlog.get_logger()

BEAT = 1.0
"""Seconds between two heartbeats, and between two polls for changed alerts."""
LEASE = 3000
"""Milliseconds after its last heartbeat when a process's alerts are taken over."""
LOOK_BACK = 60_000
"""Milliseconds before the last poll from which changes are read again: statements that ran then may commit later."""
LOOKED_AT = 100
"""Vendors that are evaluated at once; more would block the event loop."""
APPEARED = 50
"""Cost of a vendor that appeared, in vendors that moved."""
LOOK_PAUSE = 0.1
"""Seconds between two evaluations of changed vendors: one vendor alone costs ten times as much as among many."""
SLICE = 10
"""Alerts that are started at once; more would block the event loop."""
COUNT_EVERY = 15.0
"""Seconds between two counts for the metrics."""


class Evaluator:
    """One process's alerts. `committed` is called when there are webhooks to send."""

    def __init__(
        self,
        process: str,
        store: AlertStore,
        index: LiveIndex,
        broker: Broker,
        clock: Callable[[], int],
        counters: Counters,
        committed: Callable[[], None],
    ) -> None:
        self.alerts: dict[str, Alert] = {}
        """The alerts that this process evaluates, by id."""
        self.waiting = 0
        """Webhooks of all processes that are not delivered yet, and the age of the oldest in seconds."""
        self.oldest = 0.0
        self.total = self.disabled = 0
        """Alerts of all processes, and those that are disabled."""
        self._process = process
        self._store = store
        self._index = index
        self._broker = broker
        self._clock = clock
        self._slots: frozenset[int] = frozenset()
        self._gained: set[int] = set()
        self._since = 0
        self._tracker = Tracker(self._look)
        self._card: tuple[Vendor | None, Fix | None, Card | None, bool, dict[str, Any]] = (None, None, None, False, {})
        self._writer = StateWriter(self, store, counters, committed)
        self._reload: dict[str, Alert] = {}
        self._starting: dict[str, Alert] = {}
        """Alerts whose start is not stored yet."""
        self._absent: list[tuple[int, int, Alert, str]] = []
        self._quiet: list[tuple[int, int, Alert, str]] = []
        self._expiries: list[tuple[int, int, Alert]] = []
        self._numbers = count()
        self._wake = asyncio.Event()
        self._changed: dict[Vendor, None] = {}
        """Changed vendors of the live index that are not evaluated yet."""
        self._moved = asyncio.Event()
        self._away = False
        index.observer = self.observe

    @property
    def pending(self) -> int:
        """States that are not stored yet."""
        return len(self._writer)

    def tasks(self) -> dict[str, Callable[[], Any]]:
        """The loops, by name, for the supervisor."""
        return {
            "alert-shares": self.share,
            "alerts": self.follow,
            "alert-looks": self.look,
            "alert-states": self._writer.run,
        }

    def wake(self) -> None:
        """Polls for changed alerts at once."""
        self._wake.set()

    # what happens

    def observe(self, changed: Mapping[Vendor, Before]) -> None:
        """Takes the vendors that a tick of the live index changed."""
        if self.alerts:
            self._changed.update(dict.fromkeys(changed))
            self._moved.set()

    async def look(self) -> None:
        """Evaluates changed vendors until cancelled, many at once, as that costs less per vendor."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            while self._changed:
                some, cost = [], 0
                for vendor in self._changed:
                    cost += 1 if self._tracker.follows(vendor) else APPEARED
                    some.append(vendor)
                    if cost >= LOOKED_AT:
                        break
                for vendor in some:
                    del self._changed[vendor]
                vendors = self._index.vendors
                self._tracker.changed([v for v in some if vendors.get(v.vendor_id) in (v, None)])
                await asyncio.sleep(0)
            await asyncio.sleep(LOOK_PAUSE)

    def _look(self, alert: Alert, vendor_id: str, inside: bool, vendor: Vendor | None) -> None:
        """Compares a vendor's state in an alert with the previous one."""
        if not alert.begun or alert.ended:
            return
        now = self._clock()
        if alert.expires is not None and alert.expires <= now:
            return
        state = alert.states.get(vendor_id)
        known = OUTSIDE if state is None else state.known
        seen = Seen(inside, vendor.card.open, vendor.online) if inside and vendor is not None else OUTSIDE.seen
        if not alert.started:
            following = begin(alert.definition, seen)
            if following.seen == known.seen:
                return
            events: list[tuple[str, int]] = []
        else:
            stepped = step(alert.definition, known, seen, now)
            if stepped is None:
                return
            following, events = stepped
        if state is None:
            state = State()
        state.known = following
        self._tracker.keep(alert, vendor_id, state)
        if vendor is not None and vendor.fix.timestamp >= 0:
            state.card = self._card_of(vendor)
        elif vendor is None:
            state.card = {**state.card, "online": False}
        for kind, at in events:
            state.events.append((kind, at, encode_event(kind, alert.id, state.card, at, alert.metadata)))
        self._writer.put(alert, vendor_id, state)

    def _card_of(self, vendor: Vendor) -> dict[str, Any]:
        """Returns a vendor's card, shared by all events of one ping, so it must not be modified."""
        if not all(map(is_, self._card[:4], (vendor, vendor.shown, vendor.card, vendor.online))):
            self._card = vendor, vendor.shown, vendor.card, vendor.online, vendor.card_fields()
        return self._card[4]

    # distribution of alerts

    async def share(self) -> None:
        """Shares alerts with the other processes until cancelled."""
        while True:
            try:
                living = await self._store.beat(self._process, LEASE)
                self._own(slots_of(self._process, frozenset(living)))
            except (Unavailable, DatabaseError) as away:
                self.report_outage(away)
            await asyncio.sleep(BEAT)

    async def follow(self) -> None:
        """Follows the changes of this process's alerts until cancelled."""
        loop = asyncio.get_running_loop()
        counted = -COUNT_EVERY
        self._own(frozenset())
        while True:
            began = loop.time()
            try:
                await self._follow()
                if began - counted >= COUNT_EVERY:
                    counted = began
                    self.waiting, self.oldest = await self._store.waiting()
                    self.total, self.disabled = await self._store.counts()
                self.report_outage(None)
            except (Unavailable, DatabaseError) as away:
                self.report_outage(away)
            self._pass_time()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, began + BEAT - loop.time())):
                    await self._wake.wait()
            self._wake.clear()

    async def leave(self) -> None:
        """Releases this process's alerts to the others at once, after pending states are stored."""
        with suppress(Unavailable, DatabaseError, TimeoutError):
            async with asyncio.timeout(2.0):
                if self._writer:
                    await self._writer.store()
                await self._store.leave(self._process)

    def _own(self, slots: frozenset[int]) -> None:
        """Evaluates only the alerts of these slots from now on."""
        if slots == self._slots:
            return
        self._gained = (self._gained | (slots - self._slots)) & slots
        self._slots = slots
        for alert in [alert for alert in self.alerts.values() if alert.slot not in slots]:
            self._forget(alert)
        self._wake.set()

    async def _follow(self) -> None:
        if self._gained:
            gained, self._gained = self._gained, set()
            try:
                await self._read(sorted(gained), 0, ended=False)
            except (Unavailable, DatabaseError):
                self._gained |= gained & self._slots
                raise
        if self._slots:
            newest = await self._read(sorted(self._slots), max(0, self._since - LOOK_BACK), ended=True)
            self._since = max(self._since, newest)
        if self._reload:
            again, self._reload = self._reload, {}
            try:
                await self._begin(list(again.values()))
            except (Unavailable, DatabaseError):
                self._reload = {**again, **self._reload}
                raise
        pending = self._writer.alerts()
        if begun := [alert for alert in self._starting.values() if alert not in pending]:
            # The vendors inside at the start are stored, so that they are no events for a process that takes over.
            await self._store.start([(alert.id, alert.revision) for alert in begun])
            for alert in begun:
                self._starting.pop(alert.id, None)

    async def _read(self, slots: Collection[int], since: int, *, ended: bool) -> int:
        """Reads the changed alerts of some slots; returns when the last one changed."""
        after = ""
        while True:
            rows = await self._store.changed(slots, since, after, ended=ended)
            begun: list[Alert] = []
            for number, row in enumerate(rows):
                if number % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
                alert = self._take(row)
                if alert is not None:
                    begun.append(alert)
            await self._begin(begun)
            if len(rows) < PAGE:
                return rows[-1].updated if rows else since
            since, after = rows[-1].updated, rows[-1].id

    def _take(self, row: Evaluated) -> Alert | None:
        """Applies an alert's current row; returns the alert if it has to be started."""
        present = self.alerts.get(row.id)
        if present is not None and present.revision == row.revision:
            return None
        if present is not None:
            self._forget(present)
        if row.ended or row.slot not in self._slots or (row.expires is not None and row.expires <= self._clock()):
            return None
        try:
            definition = stored_definition(row.source, row.quiet)
        except StreamerError as error:
            log.error("the definition of an alert is invalid: delete it", alert=row.id, cause=str(error))
            return None
        alert = Alert(row, definition)
        self.alerts[alert.id] = alert
        self._broker.hold(*alert.needs)
        if alert.expires is not None:
            heapq.heappush(self._expiries, (alert.expires, next(self._numbers), alert))
        return alert

    def _forget(self, alert: Alert) -> None:
        """Stops evaluating an alert."""
        if self.alerts.get(alert.id) is alert:
            del self.alerts[alert.id]
        if alert.ended:
            return
        alert.ended = True
        self._reload.pop(alert.id, None)
        self._starting.pop(alert.id, None)
        self._tracker.remove(alert)
        self._broker.release(*alert.needs)

    async def _begin(self, alerts: list[Alert]) -> None:
        """Compares the stored states of alerts with the live index, and evaluates every change from now on."""
        alerts = [alert for alert in alerts if not alert.ended]
        if not alerts:
            return
        for alert in alerts:
            self._reload[alert.id] = alert  # until it is started
        needs = Needs(
            frozenset().union(*(alert.needs.cells for alert in alerts)),
            frozenset().union(*(alert.needs.listed for alert in alerts)),
        )
        if not await self._broker.ready(*needs):
            return  # the vendors of other processes are not known yet: the next turn tries again
        stored: dict[str, list[Any]] = {}
        for row in await self._store.states([alert.id for alert in alerts]):
            stored.setdefault(row.alert_id, []).append(row)
        for number, alert in enumerate(alerts):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if alert.ended:
                continue
            self._tracker.remove(alert)
            for row in stored.get(alert.id, ()):
                self._tracker.keep(alert, row.vendor_id, State.of(row))
            self._tracker.add(alert)
            alert.begun = True
            self._compare(alert)
            self._reload.pop(alert.id, None)
            if not alert.started:
                alert.started = True
                self._starting[alert.id] = alert
                self._wake.set()

    def _compare(self, alert: Alert) -> None:
        """Evaluates all vendors that are or were inside an alert."""
        vendors = self._index.vendors
        now = self._clock()
        for vendor_id, state in list(alert.states.items()):
            vendor = vendors.get(vendor_id)
            if vendor is not None and vendor.live:
                self._tracker.look(alert, vendor)
            elif state.known.seen.inside and not alert.started:
                # It was inside before the alert was changed or enabled: that it is not inside now is no event.
                self._look(alert, vendor_id, False, None)
            elif state.known.seen.inside:
                # It may come back: after a restart of all processes vendors need a moment to reconnect.
                deadline = now + self._index.offline_after
                heapq.heappush(self._absent, (deadline, next(self._numbers), alert, vendor_id))
        for vendor in self._tracker.inside(alert, self._index):
            if vendor.vendor_id not in alert.states:
                self._tracker.look(alert, vendor)

    def _pass_time(self) -> None:
        now = self._clock()
        while self._absent and self._absent[0][0] <= now:
            _, _, alert, vendor_id = heapq.heappop(self._absent)
            vendor = self._index.vendors.get(vendor_id)
            if not alert.ended and (vendor is None or not vendor.live):
                self._look(alert, vendor_id, False, None)
        while self._quiet and self._quiet[0][0] <= now:
            _, _, alert, vendor_id = heapq.heappop(self._quiet)
            state = alert.states.get(vendor_id)
            if state is None or state.known.seen.inside or (alert, vendor_id) in self._writer:
                continue
            if quiet_until(alert.definition, state.known) <= now:
                self._tracker.drop(alert, vendor_id)
        while self._expiries and self._expiries[0][0] <= now:
            self._forget(heapq.heappop(self._expiries)[2])

    # StateOwner

    def stored(self, alert: Alert, vendor_id: str, state: State) -> None:
        """Notes when `_pass_time` can forget a state: when its quiet time has ended."""
        if not state.known.seen.inside:
            until = quiet_until(alert.definition, state.known)
            heapq.heappush(self._quiet, (until, next(self._numbers), alert, vendor_id))

    def compare_again(self, alerts: Collection[Alert]) -> None:
        """Compares alerts with their stored states again."""
        self._writer.forget(alerts)
        for alert in alerts:
            if not alert.ended:
                alert.begun = False
                self._tracker.remove(alert)
                self._reload[alert.id] = alert
        self._wake.set()

    def report_outage(self, away: Exception | None) -> None:
        """Logs the beginning and the end of an outage."""
        if away is not None and not self._away:
            log.warning("alerts wait for PostgreSQL; states are compared afterwards", cause=str(away))
        elif away is None and self._away:
            log.info("alerts are evaluated again")
        self._away = away is not None
