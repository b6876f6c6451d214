"""Counts vendors over all processes: each process counts its own vendors, and they exchange sums on request.

A process with a `counts` watch sends a request to all others every round. They answer with the sums of their vendors by
group for as long as requests arrive. The vendors of a process that stops answering (killed, stopped, disconnected) are
still on the map. They are orphans: their registers are read from Redis and counted here until they expire, or until
another process claims them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any

import orjson
import structlog

from streamer.broker.context import HEARTBEAT, MISSED_HEARTBEATS, Context
from streamer.broker.membership import read_cell
from streamer.broker.placement import read_places
from streamer.broker.redis_connections import Command, refused
from streamer.broker.redis_schema import BROADCAST, PROCESSES, Registers, cells_key, decoding
from streamer.cpu_time import measured
from streamer.errors import ErrorCode, ProtocolError
from streamer.geo.grid import named_cell
from streamer.geo.shapes import Area, Box, Circle, Polygon
from streamer.live.counts import CellSums, Counter, CountsKey, CountsView, Sums, add
from streamer.live.index import LiveIndex
from streamer.live.watch import Watch
from streamer.protocol.messages import Group, groups_body, snapshot_head

log = structlog.get_logger()

ASK = BROADCAST + b":ask"
SUMS = BROADCAST + b":sums"

ROUND = 0.75
"""Seconds between two rounds of requests and answers."""
LONGEST_ROUND = 1.5
SHARE = 0.015
"""The maximum share of a core for counting: rounds become longer, up to LONGEST_ROUND."""
ROUNDS_OF_UPDATE = 2
"""Rounds between two updates of a watcher."""
MISSED_ROUNDS = 2.4
"""Rounds without an answer after which a process's vendors are read from Redis."""
ASKED_FOR = 4.0
"""Seconds for which a process answers a request that is not repeated."""
RECONNECT_TIME = 1.0
"""Seconds after an outage of Redis in which the other processes may reconnect."""
READY_TIMEOUT = 2.0
MOST_KEYS = 512
"""Maximum number of different counts of one process; it answers four times as many for the others."""


class Counted:
    """One watched key: the answers of the other processes, and the view that watchers have."""

    def __init__(self, key: CountsKey, id: str) -> None:
        self.key = key
        self.id = id
        self.counter = Counter(key)
        self.view = CountsView(key)
        self.answers: dict[str, Mapping[int, Sums]] = {}
        self.watches: dict[Watch, None] = {}
        self.changed: dict[str, Group] = {}
        """Groups that changed since the last update to watchers."""
        self.rests_until = 0.0
        """The loop's time before which it is not counted, as all its watchers have used up their CPU budget."""
        self.refs = 0
        self.ready = asyncio.Event()


class Counts:
    """This process's watched counts, and its answers to other processes."""

    def __init__(self, context: Context) -> None:
        self._nodes = context.nodes
        self._index = context.index
        self._local_vendors = context.local_vendors
        self._clock = context.clock
        self._keys: dict[CountsKey, Counted] = {}
        self._by_id: dict[str, Counted] = {}
        self._asked: dict[str, tuple[Counter, float]] = {}
        """Requests of other processes, and the loop's time until which they are answered."""
        self._heard: dict[str, float] = {}
        """The loop's time until which the last answer of a process is valid."""
        self._processes: dict[str, int] = {}
        """Processes that may have vendors on the map, and their last heartbeat."""
        self._processes_read = False
        self._asking_since = 0.0
        self._orphans = LiveIndex(
            "",
            offline_after=context.index.offline_after,
            leave_after=context.index.leave_after,
            visibility=context.index.visibility,
        )
        """The vendors of processes that do not answer."""
        self._own_sums = CellSums(context.index, context.local_vendors.serves)
        self._orphan_sums = CellSums(self._orphans, lambda _: True)
        self._orphaned: dict[str, set[str]] = {}
        self._claimed: set[str] = set()
        """Vendors that were claimed or deleted while orphans were being read."""
        self._reading = False
        self._round = ROUND
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._keys)

    # watches

    async def open(self, watch: Watch, key: CountsKey, interval: int = 0) -> None:
        """Starts a watch; its snapshot is written once all processes have answered, or after READY_TIMEOUT."""
        counted = await self._hold(key)
        try:
            await self._merge(counted)
        except BaseException:
            self._release(counted)
            raise
        watch.interval = interval
        counted.watches[watch] = None
        self._snapshot(counted, watch)

    def close(self, watch: Watch, key: CountsKey, *, moved: bool = False) -> None:
        """Ends a watch, except with `moved`: then it was opened again for the same key and continues."""
        counted = self._keys[key]
        if not moved:
            counted.watches.pop(watch, None)
        self._release(counted)

    async def groups(self, key: CountsKey) -> list[Group]:
        """Returns the current groups."""
        counted = await self._hold(key)
        try:
            await self._merge(counted)
            return counted.view.groups()
        finally:
            self._release(counted)

    async def _hold(self, key: CountsKey) -> Counted:
        counted = self._keys.get(key)
        if counted is None:
            if len(self._keys) >= MOST_KEYS:
                raise ProtocolError(
                    ErrorCode.OVERLOADED,
                    f"this server already counts vendors in {MOST_KEYS} different areas: ask for one again later",
                    retry_after_ms=5000,
                )
            if not self._keys:
                self._asking_since = asyncio.get_running_loop().time()
                self._nodes.want(SUMS)
            id = _encode_key(key)
            counted = self._keys[key] = self._by_id[id] = Counted(key, id)
            self._wake.set()
        counted.refs += 1
        try:
            if self._nodes.answers(BROADCAST):
                with suppress(TimeoutError):
                    async with asyncio.timeout(READY_TIMEOUT):
                        await counted.ready.wait()
        except BaseException:
            self._release(counted)
            raise
        return counted

    def _release(self, counted: Counted) -> None:
        counted.refs -= 1
        if counted.refs:
            return
        del self._keys[counted.key], self._by_id[counted.id]
        if not self._keys:
            self._nodes.drop(SUMS)
            self._heard.clear()
            self._processes.clear()
            self._processes_read = False
            for process in tuple(self._orphaned):
                self._forget_orphans(process)

    async def _merge(self, counted: Counted) -> None:
        """Adds up the sums of all processes, and records the groups that changed."""
        groups = await counted.counter.count(self._own_sums)
        orphans = await counted.counter.count(self._orphan_sums) if self._orphans.vendors else None
        now = asyncio.get_running_loop().time()
        answers = [
            sums
            for process, sums in counted.answers.items()
            # The vendors of a process unknown to Redis can't be read, so its sums end with its answers.
            if process not in self._orphaned and (process in self._processes or self._heard.get(process, 0.0) > now)
        ]
        if orphans is not None:
            answers.append(orphans)
        for answer in answers:
            for group, sums in answer.items():
                held = groups.get(group)
                groups[group] = list(sums) if held is None else add(held, sums)
        counted.changed.update((group.group, group) for group in counted.view.update(groups))

    def _snapshot(self, counted: Counted, watch: Watch) -> None:
        if watch.writer.ready():
            body = snapshot_head(watch.id) + groups_body(counted.view.groups())
            watch.writer.write(watch.writer.framing(body))
            watch.snapshot_due = False
            watch.due = self._clock() + watch.interval
        else:
            watch.snapshot_due = True

    # messages

    def subscribe_all(self) -> None:
        """Subscribes to the channels on the node that serves them now."""
        self._nodes.want(ASK)
        if self._keys:
            self._nodes.want(SUMS)

    def extend_deadlines(self) -> None:
        """Extends the deadlines of all processes, as no answer could arrive for a while."""
        until = asyncio.get_running_loop().time() + RECONNECT_TIME + 2 * self._round
        self._heard = dict.fromkeys(self._heard, until)

    def on_ask(self, data: bytes) -> None:
        """Handles another process's request for sums."""
        with decoding():
            origin, ids = orjson.loads(data)
        if origin == self._index.me:
            return
        until = asyncio.get_running_loop().time() + ASKED_FOR
        for id in ids:
            known = self._asked.get(id)
            if known is not None:
                self._asked[id] = (known[0], until)
            elif len(self._asked) < MOST_KEYS * 4:
                with decoding():
                    key = _decode_key(id)
                self._asked[id] = (Counter(key), until)
                self._wake.set()

    def on_sums(self, data: bytes) -> None:
        """Handles another process's answer."""
        with decoding():
            process, interval, answers = orjson.loads(data)
            if process == self._index.me:
                return
            sums_of = {id: {int(group): sums for group, *sums in groups} for id, groups in answers if id in self._by_id}
        self._heard[process] = asyncio.get_running_loop().time() + interval * MISSED_ROUNDS
        if process in self._orphaned:
            self._forget_orphans(process)
        for id, groups in sums_of.items():
            self._by_id[id].answers[process] = groups
        self._check_ready()

    def on_broadcast(self, data: bytes) -> None:
        """Removes vendors from the orphans that a process claimed or reported as deleted."""
        if not self._keys:
            return
        with decoding():
            origin, _, _, presences, https, gone = orjson.loads(data)
            ids = [*(presence[0] for presence in presences), *(http[0] for http in https), *gone]
        if origin in self._orphaned:
            return
        for id in ids:
            if self._reading:
                self._claimed.add(id)
            self._orphans.remove(id)

    # its task

    async def run(self) -> None:
        """Sends requests and answers, and updates watchers, until cancelled."""
        loop = asyncio.get_running_loop()
        self._nodes.want(ASK)
        number = 0
        while True:
            if not (self._keys or self._asked):
                self._own_sums.stop()
                await self._wake.wait()
            self._wake.clear()
            started, cpu = loop.time(), time.thread_time()
            self._asked = {id: asked for id, asked in self._asked.items() if asked[1] > started}
            self._own_sums.refresh()
            self._orphan_sums.refresh()
            await self._exchange()
            if self._keys:
                adopted = await self._adopt_orphans()
                number += 1
                if adopted or number % ROUNDS_OF_UPDATE == 0:
                    await self._update()
                self._check_ready()
            self._round = min(max(ROUND, (time.thread_time() - cpu) / SHARE), LONGEST_ROUND)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(self._round - (loop.time() - started), 0.05)):
                    await self._wake.wait()

    async def _exchange(self) -> None:
        """Publishes this process's requests and its answers to others, and reads the list of processes."""
        commands: list[Command] = []
        if self._keys:
            # Answers take a round or two: a suspended count is requested again before it continues.
            awake = asyncio.get_running_loop().time() + ROUNDS_OF_UPDATE * LONGEST_ROUND
            asked = [id for id, counted in self._by_id.items() if counted.rests_until <= awake]
            ask = orjson.dumps((self._index.me, asked))
            commands.append(Command(BROADCAST, ("SPUBLISH", ASK, ask)))
            earliest = self._clock() - self._index.offline_after - self._index.leave_after
            commands.append(Command(BROADCAST, ("ZRANGEBYSCORE", PROCESSES, earliest, "+inf", "WITHSCORES")))
        if self._asked:
            answers = []
            for id, (counter, _) in tuple(self._asked.items()):
                groups = await counter.count(self._own_sums)
                answers.append((id, [(group, *sums) for group, sums in groups.items()]))
            sums = orjson.dumps((self._index.me, self._round, answers))
            commands.append(Command(BROADCAST, ("SPUBLISH", SUMS, sums)))
        found = await self._nodes.run(commands) if commands else []
        if self._keys and len(found) > 1 and not refused(found[1]):
            pairs = iter(found[1])
            self._processes = {name.decode(): int(float(at)) for name, at in zip(pairs, pairs, strict=True)}
            self._processes.pop(self._index.me, None)
            self._processes_read = True

    async def _update(self) -> None:
        """Writes what changed to the watchers: the same bytes for all of one key."""
        loop = asyncio.get_running_loop()
        for counted in tuple(self._keys.values()):
            if counted.rests_until > loop.time() or not counted.refs:
                continue
            used: list[float] = []
            await measured(self._merge(counted), used.append)
            self._charge(counted, sum(used), loop.time())
            now, changed = self._clock(), counted.changed
            counted.changed = {}
            frames: dict[Any, bytes] = {}
            body = groups_body(changed.values())
            for watch in counted.watches:
                if not watch.snapshot_due and (watch.held(now) or not watch.writer.ready()):
                    watch.snapshot_due = bool(changed)  # instead of keeping what it missed
                elif watch.snapshot_due:
                    if not watch.held(now):
                        self._snapshot(counted, watch)
                elif changed:
                    frame = frames.get(watch.kind) or frames.setdefault(watch.kind, watch.kind.frame(body))
                    watch.writer.write(frame)
                    watch.due = now + watch.interval

    def _charge(self, counted: Counted, seconds: float, now: float) -> None:
        """Charges the watchers' CPU budgets; the key is suspended for as long as all of them are over budget."""
        share, rest = seconds / max(1, len(counted.watches)), inf
        for watch in counted.watches:
            excess = 0.0 if watch.payer is None else watch.payer.charge(share)
            rest = min(rest, excess)
            if excess and watch.payer is not None:
                watch.payer.slowed(watch.id, excess)
        counted.rests_until = now + rest if counted.watches else 0.0

    def _check_ready(self) -> None:
        """Resumes waiting watchers once every process that can answer has answered."""
        if not self._processes_read:
            return
        for counted in self._keys.values():
            if not counted.ready.is_set() and all(p in counted.answers or p in self._orphaned for p in self._processes):
                counted.ready.set()

    # orphans: vendors of processes that do not answer

    async def _adopt_orphans(self) -> bool:
        """Drops orphans that expired or are served again, and reads those of newly lost processes.

        Returns whether any process was lost.
        """
        now, loop_now = self._clock(), asyncio.get_running_loop().time()
        for id in [id for id in self._orphans.vendors if id in self._local_vendors]:
            self._orphans.remove(id)
        self._orphans.frozen = self._index.frozen
        self._orphans.expire(now)
        while self._orphans.due(now):
            await asyncio.sleep(0)
            self._orphans.expire(now)
        self._orphans.tick(now)
        for process in self._orphaned.keys() - self._processes.keys():
            if self._orphaned[process].isdisjoint(self._orphans.vendors):
                self._forget_orphans(process)
        if self._index.frozen:
            return False
        silent_before = now - HEARTBEAT * MISSED_HEARTBEATS * 1000
        first = self._asking_since + ROUND * MISSED_ROUNDS
        lost = {
            process: at
            for process, at in self._processes.items()
            if process not in self._orphaned
            and (self._heard[process] < loop_now if process in self._heard else at < silent_before or first < loop_now)
        }
        if lost:
            self._reading = True
            try:
                await self._read_orphans(lost, now)
            finally:
                self._reading = False
                self._claimed.clear()
        return bool(lost)

    async def _read_orphans(self, lost: Mapping[str, int], now: int) -> None:
        keys = [Command(BROADCAST, ("SMEMBERS", cells_key(process))) for process in lost]
        names = [name for answer in await self._nodes.run(keys, "read") if not refused(answer) for name in answer]
        for process, at in lost.items():
            self._orphans.owner_heard(process, min(at, now), now)
        owned: dict[str, set[str]] = {process: set() for process in lost}
        for name in dict.fromkeys(names):
            found = (await read_cell(self._nodes, named_cell(name.decode()))).found
            places = await read_places(self._nodes, [id for id, registers in found.items() if _by_place(registers)])
            for id, registers in found.items():
                place = places.get(id)
                counted_by = registers.process() if place is None else place.process
                if counted_by in owned and id not in self._claimed and id not in self._local_vendors:
                    registers.put(self._orphans, now)
                    owned[counted_by].add(id)
        self._orphaned |= owned
        for process in [process for process in lost if self._heard.get(process, 0) > asyncio.get_running_loop().time()]:
            self._forget_orphans(process)  # it answered meanwhile
        counts = {process: len(ids) for process, ids in owned.items()}
        log.info("counting the vendors of processes that do not answer", vendors=counts)

    def _forget_orphans(self, process: str) -> None:
        for id in self._orphaned.pop(process):
            self._orphans.remove(id)


def _by_place(registers: Registers) -> bool:
    """Whether a vendor was last seen by a ping over HTTP, which does not name its process."""
    if registers.presence is None:
        return True
    ended = orjson.loads(registers.presence[13:])[3]
    return bool(ended) and registers.http is not None and int(registers.http[:13]) > ended


def _encode_key(key: CountsKey) -> str:
    area = key.area
    if isinstance(area, Box):
        shape: list[Any] = ["box", area.south, area.west, area.north, area.east]
    elif isinstance(area, Circle):
        shape = ["circle", area.lat, area.long, area.radius]
    else:
        shape = ["polygon", area.points]
    return orjson.dumps([key.level, key.open, *shape]).decode()


def _decode_key(id: str) -> CountsKey:
    level, only_open, kind, *shape = orjson.loads(id)
    area: Area
    if kind == "box":
        area = Box(*shape)
    elif kind == "circle":
        area = Circle(*shape)
    else:
        area = Polygon(tuple((long, lat) for long, lat in shape[0]))
    return CountsKey(area, level, only_open)
