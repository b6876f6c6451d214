"""The asyncio client of the Venta location streamer: pings that are not lost, views that stay true."""

__version__ = "1.0.0"
