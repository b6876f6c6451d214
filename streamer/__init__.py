"""Live-location server: vendors send pings, PostgreSQL stores them, customers watch areas in real time."""

__version__ = "0.2.0"
