"""Budgets of CPU time: how much of the server one connection, user or address may use. Pure.

Each budget is a leaky bucket of CPU seconds: what a client costs is measured and added, and `rate` seconds of it drain
each second. A client whose bucket holds more than BURST seconds' worth has to wait until the excess has drained. Times
are seconds of a monotonic clock and are passed in.

Clients that use much (over half of a burst) additionally share one budget. So however many of them there are, they
leave the event loop to the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.rate_limit import Meter

BURST = 5.0
"""Seconds of a budget that may be used at once."""
PREPAID = 0.001
"""Seconds of CPU that work which is about to start is charged for, so that not everybody starts at once."""
MIN_PRUNE = 1000
"""Users or addresses that are remembered before idle ones are looked for."""


@dataclass(frozen=True, slots=True)
class CostLimits:
    """Shares of one CPU core that a connection, a user, an address, and all heavy clients together may use."""

    connection: float = 0.02
    user: float = 0.06
    address: float = 0.3
    heavy: float = 0.1


class CostBudgets:
    """The budgets of all clients of this process."""

    def __init__(self, limits: CostLimits) -> None:
        self.limits = limits
        self.users = _Meters(limits.user)
        self.addresses = _Meters(limits.address)
        self.heavy = Meter(limits.heavy, 0.0)

    def client(self, address: str | None, now: float) -> ClientCost:
        """Returns the cost of a new connection or request; without an address only its user is charged beside it."""
        return ClientCost(self, address, now)


class ClientCost:
    """What one connection or request costs, charged to itself, its user and its address."""

    __slots__ = ("_budgets", "_meters", "user")

    def __init__(self, budgets: CostBudgets, address: str | None, now: float) -> None:
        self._budgets = budgets
        self._meters = [Meter(budgets.limits.connection, now)]
        if address is not None:
            self._meters.append(budgets.addresses.of(address, now))
        self.user: str | None = None

    def set_user(self, user: str, now: float) -> None:
        """Charge this user, too, from now on."""
        if user != self.user:
            if self.user is not None:
                self._meters.pop()
            self.user = user
            self._meters.append(self._budgets.users.of(user, now))

    def check(self, now: float) -> None:
        """Raise ProtocolError when the client has to wait."""
        if wait := self.wait(now):
            raise ProtocolError(ErrorCode.RATE_LIMITED, self.warning, retry_after_ms=round(wait * 1000))

    @property
    def warning(self) -> str:
        """Tells a client that has to wait why."""
        return (
            f"your requests take more of the server's CPU time than {self._budgets.limits.connection * 1000:g} ms a"
            " second: send fewer of them, or watch fewer and simpler areas"
        )

    def charge(self, seconds: float, now: float) -> None:
        """Add CPU time that was used for this client."""
        for meter in self._meters:
            meter.add(seconds, now)
        if self._is_heavy(now):
            self._budgets.heavy.add(seconds, now)

    def wait(self, now: float) -> float:
        """Returns seconds after which the client may be served again; 0 when it may be now."""
        wait = max(_excess(meter, now) for meter in self._meters)
        return max(wait, _excess(self._budgets.heavy, now)) if self._is_heavy(now) else wait

    def _is_heavy(self, now: float) -> bool:
        return any(meter.level(now) > 0.5 * BURST * meter.rate for meter in self._meters)


class _Meters:
    """A meter for each user or address that used anything lately."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._of: dict[str, Meter] = {}
        self._prune_at = MIN_PRUNE

    def __len__(self) -> int:
        return len(self._of)

    def of(self, name: str, now: float) -> Meter:
        meter = self._of.get(name)
        if meter is None:
            if len(self._of) >= self._prune_at:
                self._of = {name: each for name, each in self._of.items() if each.level(now) > 0}
                self._prune_at = max(MIN_PRUNE, 2 * len(self._of))
            meter = self._of[name] = Meter(self._rate, now)
        return meter


def _excess(meter: Meter, now: float) -> float:
    """Seconds until a meter is within its burst again."""
    return max(0.0, meter.level(now) / meter.rate - BURST)
