"""Redis between the processes: publish what this one's vendors do, hear of the others', keep where everyone is now.

`registers.py` says what is kept where, `nodes.py` how it gets there, `teller.py` tells, `listener.py` hears, and
`owners.py` knows which processes live. What makes every map true, whatever fails:

- Stored, then published; subscribed, then read: nothing falls between. Who was heard to leave during a read stays away.
- After a gap cells are read again and their watchers get snapshots; this process's vendors are written anew.
- A vendor has one place. Who takes it over or moves it drops the old entry; who hears of a newer one elsewhere yields.
- What is not done yet (an old entry to drop, a vendor to write) is kept until it is; a node that is away stops only
  what is on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from streamer.broker.membership import ALONE_AFTER, Membership
from streamer.broker.publisher import ALONE_GAP, Publisher
from streamer.broker.redis_cluster import Command, Node, Nodes
from streamer.broker.redis_schema import ROAM, once_key
from streamer.broker.subscriber import GRACE, LINGER, Subscriber
from streamer.counters import Counters
from streamer.errors import Unavailable
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors

log = structlog.get_logger()


class Broker:
    """This process's side of Redis.

    `changed()` is called when the index changed; `gap(cells, vendor_ids)` when changes in these cells, or of these
    listed vendors, may have been missed; `deleted(vendor_id)` when another process found a vendor of this one deleted.
    """

    def __init__(
        self,
        url: str,
        index: LiveIndex,
        clock: Callable[[], int],
        *,
        changed: Callable[[], None],
        gap: Callable[[frozenset[int], frozenset[str]], None],
        deleted: Callable[[str], None] = lambda _: None,
        timeout: float = 2.0,
        flush_gap: float = 0.15,
        alone_after: float = ALONE_AFTER,
        alone_gap: float = ALONE_GAP,
        linger: float = LINGER,
        grace: float = GRACE,
        counters: Counters | None = None,
    ) -> None:
        self.url = url
        self.index = index
        self.gaps = 0
        self._clock = clock
        self._timeout = timeout
        self._heard = False
        """The signs of life of the others were heard before."""
        self.nodes = Nodes(
            url,
            heard=self._hear,
            subscribed=self._subscribed,
            answered=self._answered,
            turned=self._turned,
            reshaped=self._reshaped,
            timeout=timeout,
            counters=counters,
        )
        self.local_vendors = LocalVendors(index, self.mark, changed)
        self.owners = Membership(
            self.nodes, index, self.local_vendors, clock, forgotten=self._write_anew, alone_after=alone_after
        )
        self.publisher = Publisher(
            self.nodes,
            index,
            self.local_vendors,
            self.owners,
            clock,
            changed=changed,
            given=lambda vendor: self.subscriber.left(vendor),
            flush_gap=flush_gap,
            alone_gap=alone_gap,
        )
        self.subscriber = Subscriber(
            self.nodes,
            index,
            self.local_vendors,
            self.owners,
            self.publisher,
            clock,
            changed=changed,
            gap=gap,
            deleted=deleted,
            linger=linger,
            grace=grace,
        )

    @property
    def up(self) -> bool:
        """Whether all of Redis answers and is heard."""
        return self.nodes.cause is None

    @property
    def cause(self) -> str | None:
        """Why not, None when it is."""
        return self.nodes.cause

    @property
    def next(self) -> float:
        """When a change that comes now can first be told to the others, in the loop's time; may have passed."""
        return self.publisher.next

    @property
    def pending(self) -> int:
        """Vendors of which something is still to be written."""
        return self.publisher.pending

    @property
    def cells(self) -> frozenset[int]:
        """The bus cells that this process hears."""
        return self.subscriber.cells

    # what the process's vendors do

    def mark(self, vendor_id: str, parts: int) -> None:
        """A part of a vendor's state changed: it is written with the next flush."""
        self.publisher.mark(vendor_id, parts)

    def mark_gone(self, vendor_id: str) -> None:
        """A vendor was deleted: take it off every process's map."""
        self.publisher.mark_gone(vendor_id)
        self.subscriber.forget(vendor_id)

    def departed(self, vendor_ids: Iterable[str]) -> None:
        """Vendors left the map by time; their entries in Redis are not needed any more."""
        self.publisher.departed(vendor_ids)

    async def once(self, vendor_ids: Sequence[str], every: int) -> dict[str, int]:
        """Which of these did something, on whatever process, less than `every` ms ago: ms until they may again.

        The others may, and are remembered as having done it now; so are those whose Redis is away, by nobody.
        """
        commands: list[Command] = []
        for vendor_id in vendor_ids:
            key = once_key(vendor_id)
            commands.append(Command(key, ("SET", key, self.index.me, "NX", "PX", every)))
            commands.append(Command(key, ("PTTL", key)))
        answers = await self.nodes.run(commands) if commands else []
        return {
            vendor_id: int(left)
            for vendor_id, done, left in zip(vendor_ids, answers[::2], answers[1::2], strict=True)
            if done is None and type(left) is int and left > 0
        }

    # what its watchers need

    def hold(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """Hear these cells, and of these vendors wherever they are, until they are released."""
        self.subscriber.hold(cells, vendor_ids)

    async def ready(self, cells: Iterable[int], vendor_ids: Iterable[str] = (), timeout: float = 2.0) -> bool:
        """Wait until what is held is read; False when that is not so in time, and updates bring the rest."""
        return await self.subscriber.ready(cells, vendor_ids, timeout)

    def release(self, cells: Iterable[int], vendor_ids: Iterable[str] = ()) -> None:
        """A watch needs these no more; the cells are heard a while longer."""
        self.subscriber.release(cells, vendor_ids)

    # its tasks, to be supervised by the owner

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The loops that keep the bus going, by name."""
        return {
            "bus-nodes": self.nodes.keep,
            "bus-flush": self.publisher.run,
            "bus-load": self.subscriber.run,
            "bus-alive": self.owners.live,
            "bus-reap": self.owners.reap,
        }

    async def close(self) -> None:
        """Say what is left to say, and let go of all connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self.publisher.flush()
        await self.nodes.close()

    async def probe(self) -> None:
        """Unavailable unless all of Redis answers."""
        if (cause := self.nodes.cause) is not None:
            raise Unavailable(f"Redis does not answer: {cause}")

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out another part's commands, between our own; an exception for each answer that did not come."""
        return await self.nodes.run(commands)

    # what the nodes tell

    def _hear(self, name: bytes, data: bytes) -> None:
        self.subscriber.hear(name, data)

    def _subscribed(self, name: bytes) -> None:
        if name == ROAM:
            self._unfreeze()
        else:
            self.subscriber.subscribed(name)

    def _unfreeze(self) -> None:
        """Signs of life are heard (again): nobody is given up for what was not heard meanwhile."""
        self.index.pardon(self._clock())
        self.index.frozen = False
        if self._heard:
            self.subscriber.follow_again()
            self._write_anew()
        self._heard = True

    def _answered(self, node: Node) -> None:
        """A node answers (again): what it holds may be gone or old."""
        self.subscriber.wake()
        self.owners.wake()
        self._write_anew()
        self.subscriber.want_all()

    def _turned(self, node: Node) -> None:
        self.owners.heard_one()
        if node.link.up:
            return
        if self.subscriber.cells or self._heard:
            self.gaps += 1
        if node is self.nodes.of(ROAM):
            self.index.frozen = True
        log.warning("a gap in what is heard of other processes", cause=node.link.cause)

    def _reshaped(self) -> None:
        self.subscriber.want_all()
        self.subscriber.wake()
        self.publisher.place_again()

    def _write_anew(self) -> None:
        """Redis may not hold what it was told any more."""
        self.owners.known = False
        self.publisher.write_anew()
