"""Budgets of CPU time: how much of the server one connection, user or address may use. Pure.

Each budget is a leaky bucket of CPU seconds: a client's measured CPU time is added, and `rate` seconds drain each
second. A client whose bucket holds more than BURST seconds' worth has to wait until the excess has drained. Times are
seconds of a monotonic clock and are passed in.

Heavy clients (over a tenth of their rate, beyond half of a burst) additionally share one budget, so that any number of
them leaves most of the event loop to the others.

The open watches of a connection are charged only for what they use together over WATCHING of its rate. Ordinary watches
use less, and thousands of customers may share one address.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.rate_limit import Meter, Remembered

BURST = 5.0
"""Seconds of a budget that may be used at once."""
RESUME = 4.0
"""The same for resting watches: it is lower, so that the client's messages, such as `unwatch`, go first."""
WATCHING = 0.05
"""The share of a connection's rate that its open watches may use without being charged."""
HEAVY_RATE, HEAVY_BURST = 0.1, 0.5
"""The shares of its rate and of its burst beyond which a client is heavy."""
PREPAID = 0.001
"""CPU seconds that are charged when work starts, so that waiting clients do not all start at once."""
LOOK_AGAIN = 0.1
"""Minimum seconds between two checks of a budget that several clients wait for."""


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
        self.users = Remembered(partial(Budget, limits.user), Budget.idle)
        self.addresses = Remembered(partial(Budget, limits.address), Budget.idle)
        self.heavy = Meter(limits.heavy, 0.0)

    def client(self, address: str | None, now: float) -> ClientCost:
        """Returns the cost of a new connection or request; without an address only it and its user are charged."""
        return ClientCost(self, address, now)


class ClientCost:
    """What one connection or request costs, charged to itself, its user and its address."""

    __slots__ = ("_address", "_budgets", "_meters", "_watching", "user")

    def __init__(self, budgets: CostBudgets, address: str | None, now: float) -> None:
        self._address = address
        self._budgets = budgets
        self._meters = [Budget(budgets.limits.connection, now)]
        self._watching = Meter(WATCHING * budgets.limits.connection, now)
        if address is not None:
            self._meters.append(budgets.addresses.of(address, now))
        self.user: str | None = None

    @property
    def client(self) -> str | None:
        """The client: its user, or the address if it has no token; None on this machine."""
        return self._address if self.user is None else self.user

    def set_user(self, user: str, now: float) -> None:
        """Charge this user too, from now on."""
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
        """The message for a client that has to wait."""
        return (
            f"your requests take more of the server's CPU time than {self._budgets.limits.connection * 1000:g} ms a"
            " second: send fewer of them, or watch fewer and simpler areas"
        )

    def charge(self, seconds: float, now: float, *, resting: bool = False) -> None:
        """Add CPU time that was used for this client; `resting`: for watches that rest."""
        for meter in self._meters:
            meter.add(seconds, now)
        if not resting and self.heavy(now):
            self._budgets.heavy.add(seconds, now)

    def charge_watching(self, seconds: float, now: float) -> None:
        """Add CPU time that was used for the client's open watches."""
        if (excess := self._watching.add(seconds, now) - BURST * self._watching.rate) > 0:
            self._watching.add(-excess, now)
            self.charge(excess, now)

    def wait(self, now: float, *, resting: bool = False) -> float:
        """Returns seconds after which the client, or its watches that rest, may be served again; 0 when now."""
        burst = RESUME if resting else BURST
        wait = max(_excess(meter, now, burst) for meter in self._meters)
        return max(wait, _excess(self._budgets.heavy, now, burst)) if not resting and self.heavy(now) else wait

    def heavy(self, now: float) -> bool:
        """Returns whether the client is heavy."""
        return any(meter.heavy(now) for meter in self._meters)


class Budget(Meter):
    """A meter that also detects heavy use, even if the client stays within its budget."""

    __slots__ = ("_use",)

    def __init__(self, rate: float, now: float) -> None:
        super().__init__(rate, now)
        self._use = Meter(HEAVY_RATE * rate, now)

    def add(self, count: float, now: float) -> float:
        """Add CPU seconds that were just used."""
        # Bounded, so that a heavy client does not count as heavy for long afterwards.
        self._use.add(min(count, max(0.0, BURST * self.rate - self._use.level(now))), now)
        return super().add(count, now)

    def heavy(self, now: float) -> bool:
        """Returns whether the recent use is heavy."""
        return self._use.level(now) > HEAVY_BURST * BURST * self.rate


def _excess(meter: Meter, now: float, burst: float) -> float:
    """Seconds until a meter is within a burst again."""
    return max(0.0, meter.level(now) / meter.rate - burst)
