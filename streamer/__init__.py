"""Venta's live-location server: vendors report, PostgreSQL remembers, customers nearby see them move."""

__version__ = "0.1.0"
