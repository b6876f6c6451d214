"""Determines the client's address behind reverse proxies. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address


def client_address(peer: str | None, forwarded: Sequence[str], hops: int) -> str | None:
    """Return the address that a connection counts for: IPv6 as its /64, None for this machine itself.

    Args:
        peer: the address at the other end of the connection.
        forwarded: the `X-Forwarded-For` headers.
        hops: the number of our own proxies that add to them. Only their entries are trusted; the first is the client.
    """
    entries = [entry for header in forwarded for entry in header.split(",")] if hops > 0 else []
    for entry in (entries[max(0, len(entries) - hops)] if entries else "", peer or ""):
        address = parse_address(entry)
        if address is not None:
            if address.is_loopback:
                return None
            return str(address) if address.version == 4 else str(IPv6Network((address, 64), strict=False))
    return None


def is_loopback(peer: str | None) -> bool:
    """Return whether an address is this machine's own."""
    address = parse_address(peer or "")
    return address is not None and address.is_loopback


def parse_address(entry: str) -> IPv4Address | IPv6Address | None:
    """Parse an address with or without a port, brackets or a zone."""
    text = entry.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if address.version == 6 else address
