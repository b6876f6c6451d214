"""The client of the Venta location streamer: pings without loss, and exact live views. `sync` is for scripts."""

from venta_client.client import ServerError
from venta_client.customer import CountsWatch, CustomerClient, Watch
from venta_client.errors import (
    ClientError,
    ConnectionFailed,
    PingRejected,
    QueueFailed,
    Refused,
    RequestRefused,
    Violation,
    WatchRefused,
)
from venta_client.events import Event
from venta_client.link import State
from venta_client.ping import Ping
from venta_client.queues import MemoryQueue, Queue, SqliteQueue
from venta_client.sign_in import SignedIn, sign_in
from venta_client.vendor import VendorClient
from venta_client.wire import Area, Box, Card, Circle, Group, Hello, Polygon, Position

__version__ = "1.0.0"

__all__ = [
    "Area",
    "Box",
    "Card",
    "Circle",
    "ClientError",
    "ConnectionFailed",
    "CountsWatch",
    "CustomerClient",
    "Event",
    "Group",
    "Hello",
    "MemoryQueue",
    "Ping",
    "PingRejected",
    "Polygon",
    "Position",
    "Queue",
    "QueueFailed",
    "Refused",
    "RequestRefused",
    "ServerError",
    "SignedIn",
    "SqliteQueue",
    "State",
    "VendorClient",
    "Violation",
    "Watch",
    "WatchRefused",
    "sign_in",
]
