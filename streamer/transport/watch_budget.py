"""Charges a connection for the CPU time of its open watches, and informs it when they are slowed."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from streamer.errors import ErrorCode
from streamer.ingest.cost import ClientCost
from streamer.protocol import messages
from streamer.transport.writer import Writer

TELL_AGAIN = 60.0
"""Seconds between two notices to a connection that its watches are slowed."""
FIRST_REST, LONGEST_REST = 10.0, 600.0
"""Seconds after which resting watches get updates again: doubled with each failed try, as a try costs CPU time too."""
TRIED = 60.0
"""Seconds after which a try has succeeded."""


class WatchBudget:
    """The `Payer` of one connection's watches."""

    __slots__ = ("_calm_since", "_cost", "_now", "_rest", "_rests_until", "_tell_at", "_writer")

    def __init__(self, cost: ClientCost, writer: Writer, now: Callable[[], float]) -> None:
        self._cost = cost
        self._writer = writer
        self._now = now
        self._tell_at = 0.0
        self._rest = 0.0
        self._rests_until = -inf
        self._calm_since: float | None = -inf
        """None while watches rest."""

    def charge(self, seconds: float) -> float:
        now = self._now()
        if seconds:
            self._cost.charge_watching(seconds, now)
        wait = self._cost.wait(now)
        if wait and self._calm_since is not None:
            tried = now < self._calm_since + TRIED
            self._rest = min(2 * self._rest, LONGEST_REST) if tried else FIRST_REST
            self._rests_until, self._calm_since = now + self._rest, None
        return wait

    def charge_rest(self, seconds: float) -> None:
        self._cost.charge(seconds, self._now(), resting=True)

    def excess(self) -> float:
        return self._cost.wait(self._now(), resting=True)

    def calm(self) -> bool:
        if self._calm_since is None:
            now = self._now()
            if now < self._rests_until or self._cost.heavy(now) or self._cost.wait(now):
                return False
            self._calm_since = now
        return True

    def slowed(self, watch_id: str, seconds: float) -> None:
        if self._now() < self._tell_at:
            return
        self._tell_at = self._now() + TELL_AGAIN
        text = (
            f"your watches exceed your share of the server's CPU time while vendors move: watch {watch_id!r} and others"
            " get occasional snapshots instead of updates; watch fewer and simpler areas"
        )
        # Without an id: an app would take it for a refusal of this watch, and send the watch again.
        self._writer.send(messages.encode_error(ErrorCode.RATE_LIMITED, text, retry_after_ms=round(seconds * 1000)))
