"""The state shared by the broker's components: configuration, event handler, index and nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from streamer.broker.redis_cluster import Nodes
from streamer.cadence import PUBLISHES, Pace, Utilisation
from streamer.geo.grid import BUS_LEVEL, parent
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors
from streamer.live.vendor import Vendor

HEARTBEAT = 2.0
"""Maximum number of seconds between two heartbeats of a process."""
MISSED_HEARTBEATS = 3
"""Missed heartbeats after which a process is silent: this one takes over its vendors that have a socket open here."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """The address of Redis, and timeouts and intervals in seconds."""

    url: str
    timeout: float = 2.0
    """Timeout of an answer of Redis."""
    pace: Pace = PUBLISHES
    """The pace of flushes."""
    utilisation: Utilisation | None = None
    """The event loop's utilisation; by default measured here."""
    alone_gap: float = 2.0
    """Between two flushes while there is no other process: only processes that start later read them."""
    alone_after: float = MISSED_HEARTBEATS * HEARTBEAT
    """Without a message from another process for this long, this process assumes that it is the only one."""
    linger: float = 30.0
    """How long a cell stays subscribed after its last watch ended, as customers often pan back."""
    grace: float = 10.0
    """How long the other processes may take to write their vendors again after Redis lost its data."""


class BrokerEventHandler(Protocol):
    """Receives the broker's events."""

    def on_index_changed(self) -> None:
        """Called when the index changed: a tick is due."""

    def on_gap(self, cells: frozenset[int], vendor_ids: frozenset[str]) -> None:
        """Called when changes in these cells, or of these vendors watched by id, may have been missed."""

    def on_tie(self, vendor_id: str, timestamp: int) -> None:
        """Called when another process published a different position of a local vendor with the same timestamp."""

    def on_vendor_deleted(self, vendor_id: str) -> None:
        """Called when another process reported that a local vendor was deleted."""


@dataclass(eq=False, slots=True)
class SubscribedCell:
    """A broker cell that this process is subscribed to."""

    refs: int = 0
    loaded: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    idle_since: float | None = None
    epoch: bytes | None = None
    doubtful_until: float | None = None
    """Redis lost the cell: until this loop time, a vendor missing in it may simply not have been written again yet."""
    early: set[str] = field(default_factory=set)
    """Vendors received by messages before the cell was read; perhaps only one register of them is known."""


@dataclass(frozen=True, slots=True)
class Context:
    """The shared state of one process's broker."""

    config: BrokerConfig
    nodes: Nodes
    index: LiveIndex
    local_vendors: LocalVendors
    clock: Callable[[], int]
    handler: BrokerEventHandler
    cells: dict[int, SubscribedCell] = field(default_factory=dict)

    def remove_unheard(self, vendor: Vendor) -> None:
        """Removes a vendor from the index if it is in a cell that this process is not subscribed to."""
        if parent(vendor.cell, BUS_LEVEL) not in self.cells:
            self.index.remove(vendor.vendor_id)
            self.handler.on_index_changed()
