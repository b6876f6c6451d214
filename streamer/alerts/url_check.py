"""Checks the URLs of webhooks: only public HTTPS servers, never the server's own networks. Pure."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from streamer.errors import ErrorCode, ProtocolError

NAT64 = ip_network("64:ff9b::/96")
"""Addresses that a gateway translates to the IPv4 address in their last 32 bits."""
SIX_TO_FOUR = ip_network("2002::/16")


def check_url(url: str, development: Collection[str] = ()) -> None:
    """Raises ProtocolError unless webhooks may be sent to a URL, as far as its text tells.

    Args:
        development: hosts, with their ports if they have any, that may be plain HTTP and anywhere.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refused("it is no URL") from None
    if not url.isascii() or any(c <= " " or c in '\\"<>^`{|}' for c in url):
        raise _refused("it has characters that must be escaped")
    if parts.username is not None or parts.password is not None:
        raise _refused("it has a user or password; put a secret into the path instead")
    if not host or port == 0:
        raise _refused("it has no host")
    if parts.scheme in ("http", "https") and is_development(url, development):
        return
    if parts.scheme != "https":
        raise _refused("it must begin with https://")
    address = _literal(host)
    if address is not None:
        if not is_public(address):
            raise _refused(f"{host} is not a public address")
    elif "." not in host.rstrip(".") or host.rstrip(".").endswith((".localhost", ".local", ".internal")):
        raise _refused(f"{host} is not a public host")


def host_of(url: str) -> str:
    """Returns the host and port of a URL, by which deliveries are bounded."""
    return urlsplit(url).netloc.lower()


def is_development(url: str, development: Collection[str]) -> bool:
    """Returns whether a URL goes to one of the hosts that a setting allows for development."""
    parts = urlsplit(url)
    return parts.netloc.lower() in development or (parts.hostname or "") in development


def is_public(address: str) -> bool:
    """Returns whether an IP address is on the public internet."""
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        elif parsed in NAT64:
            parsed = IPv4Address(int(parsed) & 0xFFFFFFFF)
        elif parsed in SIX_TO_FOUR or parsed.is_site_local:
            return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def _literal(host: str) -> str | None:
    """Returns a host that is an address; the short and octal forms that resolvers take count as not public."""
    try:
        return str(ip_address(host))
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        return "0.0.0.0" if last.isdecimal() or last.startswith("0x") else None


def _refused(why: str) -> ProtocolError:
    return ProtocolError(ErrorCode.INVALID_URL, f"url can't be used: {why}")
