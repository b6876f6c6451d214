"""The parts of the server that the endpoints and their connections share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from streamer.accounts.change_poller import ChangePoller
from streamer.accounts.dataloader import DataLoader
from streamer.accounts.tokens import Authenticator
from streamer.broker.subscriptions import Subscriptions
from streamer.counters import Counters
from streamer.ingest.batcher import Batcher
from streamer.ingest.rate_limit import Allowances
from streamer.live.local_vendors import LocalVendors
from streamer.protocol.bounds import Bounds
from streamer.settings import Settings
from streamer.storage.store import Store
from streamer.transport.admission import Admission
from streamer.transport.connection import ConnectionRegistry
from streamer.transport.time_slice import TimeSlice


@dataclass(eq=False, kw_only=True)
class Services:
    """Made once, by `app`."""

    settings: Settings
    connections: ConnectionRegistry
    admission: Admission
    authenticator: Authenticator
    counters: Counters
    clock: Callable[[], int]
    """Returns epoch milliseconds."""
    store: Store
    dataloader: DataLoader
    batcher: Batcher
    local_vendors: LocalVendors
    change_poller: ChangePoller
    vendors_deleted: Callable[[Collection[str]], None]
    """Removes deleted vendors from every map."""
    subscriptions: Subscriptions
    changed: Callable[[], None]
    """Schedules the next tick."""

    def __post_init__(self) -> None:
        settings = self.settings
        self.bounds = Bounds.of(settings)
        self.allowances = Allowances(settings.vendor_rate, settings.vendor_burst, settings.vendor_changes)
        self.loop = asyncio.get_running_loop()
        self.time_slice = TimeSlice(self.loop)
