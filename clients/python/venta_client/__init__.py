"""The asyncio client of the Venta location streamer: pings that are not lost, views that stay true."""

from venta_client.customer import CustomerClient, Watch
from venta_client.errors import ClientError, Ended, QueueFailed, Refused, Violation, WatchRefused
from venta_client.events import Event
from venta_client.ping import Ping
from venta_client.queues import MemoryQueue, Queue, SqliteQueue
from venta_client.vendor import VendorClient
from venta_client.wire import Area, Box, Card, Circle, Hello, Polygon, Position

__version__ = "1.0.0"

__all__ = [
    "Area",
    "Box",
    "Card",
    "Circle",
    "ClientError",
    "CustomerClient",
    "Ended",
    "Event",
    "Hello",
    "MemoryQueue",
    "Ping",
    "Polygon",
    "Position",
    "Queue",
    "QueueFailed",
    "Refused",
    "SqliteQueue",
    "VendorClient",
    "Violation",
    "Watch",
    "WatchRefused",
]
