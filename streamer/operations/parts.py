"""The parts of a server that health and metrics read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from streamer.accounts.change_poller import ChangePoller
from streamer.accounts.jwks import IssuerKeys
from streamer.alerts.delivery import Deliverer
from streamer.broker.broker import Broker
from streamer.broker.stream import Feed
from streamer.broker.subscriptions import Subscriptions
from streamer.counters import Counters
from streamer.ingest.batcher import Batcher
from streamer.ingest.position_writer import PositionWriter
from streamer.live.index import LiveIndex
from streamer.live.ticker import Ticker
from streamer.operations.backup.files import Backups
from streamer.operations.clock_check import ClockCheck
from streamer.operations.loop_lag import LoopLag
from streamer.operations.workers.peers import Peers
from streamer.settings import Settings
from streamer.storage.store import Store
from streamer.supervisor import Supervisor
from streamer.transport.admission import Admission
from streamer.transport.connection import ConnectionRegistry

if TYPE_CHECKING:
    from streamer.alerts.evaluator import Evaluator
    from streamer.transport.mqtt import MqttBridge


class Parts(Protocol):
    """The parts of `app.Server`; None stands for a part that the settings turn off."""

    settings: Settings
    counters: Counters
    store: Store
    batcher: Batcher
    positions: PositionWriter
    change_poller: ChangePoller
    keys: IssuerKeys | None
    broker: Broker
    index: LiveIndex
    ticker: Ticker
    watches: Subscriptions
    connections: ConnectionRegistry
    admission: Admission
    supervisor: Supervisor
    loop_lag: LoopLag
    clock_check: ClockCheck
    backups: Backups | None
    feed: Feed | None
    evaluator: Evaluator | None
    deliverer: Deliverer | None
    peers: Peers | None
    mqtt: MqttBridge | None
