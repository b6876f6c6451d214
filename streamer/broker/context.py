"""What the parts of the broker share: its configuration, its handler, the index and the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from streamer.broker.redis_cluster import Nodes
from streamer.cadence import PUBLISHES, Pace
from streamer.geo.grid import BUS_LEVEL, parent
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors
from streamer.live.vendor import Vendor

HEARTBEAT = 2.0
"""Seconds between two heartbeats of a process, at most."""
MISSED_HEARTBEATS = 3
"""A process that missed so many heartbeats is silent: its vendors that have a socket open here are taken over."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """How the broker reaches Redis, and its times in seconds."""

    url: str
    timeout: float = 2.0
    """How long Redis may take to answer."""
    pace: Pace = PUBLISHES
    """Of the flushes of what this process's vendors do."""
    alone_gap: float = 2.0
    """Between two flushes while no other process is there: only processes that start later read what is flushed."""
    alone_after: float = MISSED_HEARTBEATS * HEARTBEAT
    """After so long without a message from another process, this one assumes to be the only one."""
    linger: float = 30.0
    """How long a cell stays subscribed after its last watch ended: customers pan back."""
    grace: float = 10.0
    """How long the other processes may take to write their vendors again after Redis lost its data."""


class BrokerEventHandler(Protocol):
    """What the broker reports to the server."""

    def on_index_changed(self) -> None:
        """The index changed; a tick is due."""

    def on_gap(self, cells: frozenset[int], vendor_ids: frozenset[str]) -> None:
        """Changes in these cells, or of these vendors that are watched by id, may have been missed."""

    def on_tie(self, vendor_id: str, timestamp: int) -> None:
        """Another process published a ping of a vendor of this one at another place with the same timestamp."""

    def on_vendor_deleted(self, vendor_id: str) -> None:
        """Another process found a vendor of this one deleted."""


@dataclass(eq=False, slots=True)
class SubscribedCell:
    """A broker cell that this process is subscribed to."""

    refs: int = 0
    loaded: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    idle_since: float | None = None
    mark: bytes | None = None
    doubtful: bool = False
    """Redis lost the cell: a vendor that is missing in it may simply not have been written again yet."""
    early: set[str] = field(default_factory=set)
    """Vendors heard of before the cell was read: of some, only one register may have come."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the parts of one process's broker share."""

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
