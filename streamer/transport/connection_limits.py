"""Limits the connections of one user and of one address. Pure."""

from __future__ import annotations

from collections import Counter

from streamer.errors import CloseCode, Disconnect, ErrorCode
from streamer.ingest.cost import ClientCost


class ConnectionLimits:
    """Counts the connections of this process by user and by address."""

    def __init__(self, per_user: int, per_address: int) -> None:
        self.per_user = per_user
        self.per_address = per_address
        self.users: Counter[str] = Counter()
        self.addresses: Counter[str] = Counter()


class ConnectionSlot:
    """One connection as it is counted until its `release`; without an address only its user is."""

    __slots__ = ("_address", "_limits", "_user", "cost")

    def __init__(self, limits: ConnectionLimits, address: str | None, cost: ClientCost) -> None:
        self.cost = cost
        self._limits = limits
        self._address = address
        self._user: str | None = None
        if address is not None:
            limits.addresses[address] += 1

    def check_address(self) -> None:
        """Raise Disconnect when the address has too many connections."""
        limit = self._limits.per_address
        if self._address is not None and self._limits.addresses[self._address] > limit:
            raise Disconnect(
                CloseCode.TOO_MANY,
                ErrorCode.RATE_LIMITED,
                f"more than {limit} connections from {self._address}: try again later (if this is a proxy's address,"
                " set STREAMER_TRUSTED_HOPS to the number of proxies)",
            )

    def set_user(self, clerk_id: str) -> None:
        """Count the connection for this user; raise Disconnect when the user has too many."""
        if clerk_id == self._user:
            return
        self._release_user()
        self._user = clerk_id
        self._limits.users[clerk_id] += 1
        if self._limits.users[clerk_id] > self._limits.per_user:
            raise Disconnect(
                CloseCode.TOO_MANY,
                ErrorCode.RATE_LIMITED,
                f"user {clerk_id!r:.80} has more than {self._limits.per_user} connections: close some or retry later",
            )

    def release(self) -> None:
        """Stop counting the connection."""
        self._release_user()
        if self._address is not None:
            _decrement(self._limits.addresses, self._address)
            self._address = None

    def _release_user(self) -> None:
        if self._user is not None:
            _decrement(self._limits.users, self._user)
            self._user = None


def _decrement(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]
