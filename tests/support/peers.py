"""A process's live state and broker without sockets and database, for tests of the exchange through Redis."""

from __future__ import annotations

import asyncio
from typing import Any

from streamer.broker.broker import Broker
from streamer.broker.context import BrokerConfig
from streamer.broker.subscriptions import Subscriptions
from streamer.cadence import TICKS, Cadence
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.ticker import Ticker
from streamer.live.vendor import Card
from streamer.live.watch import Watch
from streamer.protocol import messages
from streamer.protocol.bounds import Bounds
from streamer.supervisor import Supervisor
from tests.support.apps import WITHIN, eventually, now_ms
from tests.support.viewer import Client

Position = tuple[float, float]


class Peer:
    """One process: `start` starts it, `stop` stops it gracefully, `kill` acts like `kill -9`."""

    def __init__(
        self, redis_url: str, name: str, *, offline_after: int = 60_000, leave_after: int = 600_000, **broker: Any
    ) -> None:
        self.behind = 0
        """How much its clock is behind, ms."""
        self.index = LiveIndex(name, offline_after=offline_after, leave_after=leave_after)
        self.ticker = Ticker(self.index, self.now, Cadence(TICKS))
        self.gaps: list[frozenset[int]] = []
        self.deleted: list[str] = []
        self.broker = Broker(BrokerConfig(redis_url, **broker), self.index, self.now, self)
        self.watches = Subscriptions(self.index, self.broker, self.now)
        self.supervisor = Supervisor()
        self.lag = 0.0
        """The longest time for which its event loop was blocked, s."""
        self._last = 0

    def now(self) -> int:
        """Its clock."""
        return now_ms() - self.behind

    async def __aenter__(self) -> Peer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        assert self.supervisor.deaths == 0, "a task of the process died"

    async def start(self, *, wait: bool = True) -> None:
        """Starts, and waits until Redis answers and its messages arrive."""
        tasks = {
            "lag": self._lag,
            "ticker": self.ticker.run,
            "expire": lambda: self.ticker.expire(self.broker.drop_expired),
        }
        self.supervisor.start({**tasks, **self.broker.tasks()})
        if wait:
            await self.joined()

    async def joined(self, within: float = WITHIN) -> None:
        """Waits until Redis answers and its messages arrive."""
        await eventually(lambda: self.broker.up, f"Redis heard, only {self.broker.cause}", within)

    async def stop(self) -> None:
        """Stops gracefully."""
        await self.supervisor.stop()
        await self.broker.close()

    async def kill(self) -> None:
        """Ends like a killed process."""
        await self.supervisor.stop()
        await self.broker.nodes.close()

    def serve(self, vendor_id: str, position: Position | None = None) -> None:
        """Opens a vendor's socket here; optionally reports a position."""
        self.broker.local_vendors.connect(vendor_id, Card(self.now(), f"the {vendor_id}", True, None), self.now())
        if position is not None:
            self.ping(vendor_id, position)

    def ping(self, vendor_id: str, position: Position, timestamp: int | None = None) -> int:
        """Reports a vendor's position; returns the timestamp."""
        if timestamp is None:
            timestamp = self._last = max(self._last + 1, self.now())
        self.broker.local_vendors.fix(vendor_id, Fix(timestamp, *position, None, None), self.now())
        return timestamp

    def part(self, vendor_id: str) -> None:
        """Ends a vendor's socket here."""
        self.broker.local_vendors.disconnect(vendor_id, self.now())

    def open(self, vendor_id: str, is_open: bool) -> None:
        """Opens or closes a vendor for business."""
        self.broker.local_vendors.card(vendor_id, Card(self.now(), f"the {vendor_id}", is_open, None), self.now())

    def delete(self, vendor_id: str) -> None:
        """Reports that a vendor was deleted."""
        self.broker.local_vendors.delete(vendor_id)
        self.broker.mark_gone(vendor_id)

    async def _lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0.1)
            self.lag = max(self.lag, loop.time() - began - 0.1)

    def looks(self) -> Look:
        """Returns a customer of this process without a watch."""
        return Look(self)

    async def watch(self, **fields: Any) -> Look:
        """Returns a customer of this process with a watch; `fields` are in wire format."""
        look = self.looks()
        await look.watch(**fields)
        return look

    # BrokerEventHandler

    def on_index_changed(self) -> None:
        """Like the server."""
        self.ticker.changed()

    def on_gap(self, cells: frozenset[int], vendor_ids: frozenset[str]) -> None:
        """Like the server."""
        self.gaps.append(cells)
        self.watches.gap(cells, vendor_ids)

    def on_tie(self, vendor_id: str, timestamp: int) -> None:
        """Ignores ties, as nothing is stored."""

    def on_vendor_deleted(self, vendor_id: str) -> None:
        """Records the deletion."""
        self.deleted.append(vendor_id)


class Look:
    """One customer with one watch."""

    def __init__(self, peer: Peer) -> None:
        self.client = Client()
        self._peer = peer
        self._watch = Watch("w", self.client)

    async def watch(self, **fields: Any) -> None:
        """Starts or moves the watch."""
        wanted = messages.watch_of({"type": "watch", "id": "w", **fields}, Bounds())
        await self._peer.watches.open(self._watch, wanted)

    def close(self) -> None:
        """Ends the watch."""
        self._peer.watches.close(self._watch)

    @property
    def view(self) -> dict[str, dict[str, Any]]:
        """Returns the app's view by vendor."""
        return self.client.views.get("w", {})

    @property
    def positions(self) -> dict[str, Position]:
        """Returns the positions that the app shows, by vendor."""
        return {id: (card["lat"], card["long"]) for id, card in self.view.items()}

    @property
    def snapshots(self) -> int:
        """Returns the number of snapshots since the last call of `client.seen`."""
        return sum(kind == "snapshot" for _, kind in self.client.kinds)

    async def sees(self, positions: dict[str, Position], within: float = WITHIN) -> None:
        """Waits until the view is exactly this."""
        try:
            await eventually(lambda: self.positions == positions, "", within)
        except AssertionError:
            raise AssertionError(f"not within {within} s: {positions}, only {self.positions}") from None
