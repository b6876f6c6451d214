"""Rate limits of messages and pings: which are handled promptly, read more slowly, or refused. Pure.

Times are seconds of a monotonic clock and are passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from streamer.errors import CloseCode, Disconnect, ErrorCode

AHEAD = 1000
"""Pings above its rate that a vendor may send and still be prompt: two full messages."""
PAUSE = 1.0
"""Seconds for which a connection that sends too many messages is not read."""
MOST_WARNINGS = 5
"""Number of pauses, each within FORGET of the previous one, after which the connection is closed."""
FORGET = 10.0
CHANGES_AHEAD = 10
"""Status changes of a vendor in a burst; each is a write, an audit entry, and an update to all watchers."""
MIN_PRUNE = 1000
"""Number of stored names after which idle ones are removed."""

T = TypeVar("T")


class Meter:
    """A leaky bucket: adds up what arrives, and drains `rate` of it each second."""

    __slots__ = ("_at", "_level", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._level = 0.0
        self._at = now

    def level(self, now: float) -> float:
        """Returns what has not drained yet."""
        return max(0.0, self._level - self.rate * max(0.0, now - self._at))

    def idle(self, now: float) -> bool:
        """Returns whether everything has drained, so that the meter can be discarded."""
        return not self.level(now)

    def add(self, count: float, now: float) -> float:
        """Add what arrived now; returns the level with it."""
        elapsed, level = now - self._at, self._level
        if elapsed > 0:
            self._at = now
            level = max(0.0, level - self.rate * elapsed)
        self._level = level = level + count
        return level

    def take(self, ahead: int, now: float) -> float:
        """Count one, or return the seconds after which to try again when it is one too many; `ahead` go at once."""
        excess = self.level(now) + 1 - ahead
        if excess > 0:
            return excess / self.rate
        self.add(1, now)
        return 0.0


class Remembered(Generic[T]):
    """Values by name, created on first use; when there are many, idle ones are discarded.

    Args:
        make: Returns the value of a new name; its argument is the time.
        idle: Whether a value equals a new one, so that it can be discarded.
    """

    def __init__(self, make: Callable[[float], T], idle: Callable[[T, float], bool]) -> None:
        self._make = make
        self._idle = idle
        self._of: dict[str, T] = {}
        self._prune_at = MIN_PRUNE

    def __len__(self) -> int:
        return len(self._of)

    def of(self, name: str, now: float) -> T:
        """Returns the value of a name."""
        value = self._of.get(name)
        if value is None:
            if len(self._of) >= self._prune_at:
                self._of = {name: each for name, each in self._of.items() if not self._idle(each, now)}
                self._prune_at = max(MIN_PRUNE, 2 * len(self._of))
            value = self._of[name] = self._make(now)
        return value


class Allowance:
    """One vendor's share of this process, over all its connections.

    Up to `rate` pings a second, and AHEAD in a burst, are prompt: they go ahead of the backlogs of others. `burst` more
    are read at full speed. Beyond that the vendor is read at `rate` while the buffer is contended, and never has more
    than `burst` pings waiting to be stored.
    """

    __slots__ = ("_burst", "_changes", "_meter", "connections", "unsettled")

    def __init__(self, rate: float, burst: int, now: float, changes: float = 0.5) -> None:
        self._meter = Meter(rate, now)
        self._changes = Meter(changes, now)
        self._burst = burst
        self.connections = 0
        self.unsettled = 0
        """Its pings that are neither stored nor rejected yet."""

    def take(self, pings: int, now: float) -> bool:
        """Count pings that arrived; returns whether they are prompt."""
        return self._meter.add(pings, now) <= AHEAD

    def wait(self, now: float, contended: bool) -> float:
        """Returns seconds after which to check again whether the vendor may be read; 0 when it may be read now."""
        if self.unsettled > self._burst:
            return (self.unsettled - self._burst) / self._meter.rate
        if contended:
            return max(0.0, self._meter.level(now) - self._burst) / self._meter.rate
        return 0.0

    def change(self, now: float) -> float:
        """Count a status change; returns 0, or the seconds to wait when the limit is exceeded."""
        return self._changes.take(CHANGES_AHEAD, now)

    def idle(self, now: float) -> bool:
        """Whether it equals a new one, so that it can be discarded."""
        return self._meter.idle(now) and self._changes.idle(now) and not self.connections and not self.unsettled


class Allowances(Remembered[Allowance]):
    """The allowances of vendors that are or were recently connected, so that a reconnect does not reset them."""

    def __init__(self, rate: float, burst: int, changes: float = 0.5) -> None:
        super().__init__(lambda now: Allowance(rate, burst, now, changes), Allowance.idle)


class Rates:
    """A rate limit for each of many names, such as users: `rate` a second, and `ahead` in a burst."""

    def __init__(self, rate: float, ahead: int) -> None:
        self._ahead = ahead
        self._meters = Remembered(lambda now: Meter(rate, now), Meter.idle)

    def __len__(self) -> int:
        return len(self._meters)

    def wait(self, name: str, now: float) -> float:
        """Count one; returns 0, or the seconds to wait when the limit is exceeded."""
        return self._meters.of(name, now).take(self._ahead, now)


class Limit:
    """The hard limit on a connection's messages: `rate` a second, and a second's worth in a burst.

    No message is dropped, as an ack of later ones would then be wrong: the connection is warned and paused, and closed
    if it continues.
    """

    __slots__ = ("_calm_at", "_hint", "_meter", "_warnings")

    def __init__(self, rate: float, now: float, hint: str = "many pings fit in one message") -> None:
        self._hint = hint
        self._meter = Meter(rate, now)
        self._warnings = 0
        self._calm_at = now

    @property
    def warning(self) -> tuple[ErrorCode, str]:
        """The code and message for a client that exceeds it."""
        return (
            ErrorCode.RATE_LIMITED,
            f"more than {self._meter.rate:g} messages a second: nothing is lost, but you are read more slowly;"
            f" {self._hint}",
        )

    def over(self, now: float) -> bool:
        """Count a message; returns whether to warn and pause the connection. Raises Disconnect if it continues."""
        if self._meter.add(1, now) <= self._meter.rate:
            return False
        self._warnings = self._warnings + 1 if now < self._calm_at else 1
        self._calm_at = now + PAUSE + FORGET
        if self._warnings > MOST_WARNINGS:
            raise Disconnect(
                CloseCode.TOO_MANY,
                ErrorCode.RATE_LIMITED,
                f"over {self._meter.rate:g} messages a second after {MOST_WARNINGS} warnings;"
                f" come back later and send less: {self._hint}",
            )
        return True
