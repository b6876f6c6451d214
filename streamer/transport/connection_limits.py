"""How many connections there may be: of one user, of one address, in all; and whose pages may open them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from streamer.errors import CloseCode, Disconnect, ErrorCode


class ConnectionLimits:
    """The connections of this process, by user and by address."""

    def __init__(self, per_user: int, per_address: int) -> None:
        self.per_user = per_user
        self.per_address = per_address
        self.users: Counter[str] = Counter()
        self.addresses: Counter[str] = Counter()

    def take(self, address: str | None) -> ConnectionSlot:
        """A seat for a connection from there; it is the caller's to `leave` it."""
        return ConnectionSlot(self, address)


class ConnectionSlot:
    """One connection's; no address: it is not counted by address."""

    __slots__ = ("_address", "_connection_limits", "_user")

    def __init__(self, connection_limits: ConnectionLimits, address: str | None) -> None:
        self._connection_limits = connection_limits
        self._address = address
        self._user: str | None = None
        if address is not None:
            connection_limits.addresses[address] += 1

    def check_address(self) -> None:
        """Closing when the address has too many."""
        most = self._connection_limits.per_address
        if self._address is not None and self._connection_limits.addresses[self._address] > most:
            raise Disconnect(
                CloseCode.TOO_MANY,
                ErrorCode.RATE_LIMITED,
                f"more than {most} connections from {self._address}: come back later (a proxy's address? then"
                " STREAMER_TRUSTED_HOPS says how many proxies there are)",
            )

    def sit(self, clerk_id: str) -> None:
        """The connection is this user's now; Closing when the user has too many."""
        if clerk_id == self._user:
            return
        self._stand()
        self._user = clerk_id
        self._connection_limits.users[clerk_id] += 1
        if self._connection_limits.users[clerk_id] > self._connection_limits.per_user:
            raise Disconnect(
                CloseCode.TOO_MANY,
                ErrorCode.RATE_LIMITED,
                f"user {clerk_id!r:.80} has more than {self._connection_limits.per_user} connections: "
                "close some, come back later",
            )

    def leave(self) -> None:
        """The connection ended."""
        self._stand()
        if self._address is not None:
            _less(self._connection_limits.addresses, self._address)
            self._address = None

    def _stand(self) -> None:
        if self._user is not None:
            _less(self._connection_limits.users, self._user)
            self._user = None


def _less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]


def client_address(peer: str | None, forwarded: Sequence[str], hops: int) -> str | None:
    """Whom to count a connection for: the client's address, IPv6 as its /64; None for this machine itself.

    `forwarded` are the X-Forwarded-For headers. Of their entries only the last `hops` were written by our own proxies:
    the first of these is the client's, whatever stands before it.
    """
    named = [entry for header in forwarded for entry in header.split(",")] if hops > 0 else []
    for entry in (named[max(0, len(named) - hops)] if named else "", peer or ""):
        address = parsed(entry)
        if address is not None:
            if address.is_loopback:
                return None
            return str(address) if address.version == 4 else str(IPv6Network((address, 64), strict=False))
    return None


def parsed(entry: str) -> IPv4Address | IPv6Address | None:
    """An address with or without a port, brackets or a zone."""
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


def allowed_origin(origin: str | None, host: str | None, allowed: Collection[str]) -> bool:
    """Whether a page from there may open a socket: no origin is no browser; the server's own pages always may."""
    if origin is None or not allowed or origin in allowed:
        return True
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == (host or "").lower()
    except ValueError:
        return False
