"""Charges a connection for what its standing watches cost, and tells it when they are slowed."""

from __future__ import annotations

from collections.abc import Callable

from streamer.errors import ErrorCode
from streamer.ingest.cost import RESUME, ClientCost
from streamer.protocol import messages
from streamer.transport.writer import Writer

TELL_AGAIN = 60.0
"""Seconds after which a connection is told again that its watches are slowed."""


class WatchBudget:
    """The `Payer` of one connection's watches."""

    __slots__ = ("_cost", "_now", "_tell_at", "_writer")

    def __init__(self, cost: ClientCost, writer: Writer, now: Callable[[], float]) -> None:
        self._cost = cost
        self._writer = writer
        self._now = now
        self._tell_at = 0.0

    def charge(self, seconds: float) -> float:
        now = self._now()
        self._cost.charge_watching(seconds, now)
        return self._cost.wait(now)

    def excess(self) -> float:
        return self._cost.wait(self._now(), RESUME)

    def slowed(self, watch_id: str, seconds: float) -> None:
        if self._now() < self._tell_at:
            return
        self._tell_at = self._now() + TELL_AGAIN
        text = (
            f"what your watches cost while vendors move is over your share of the server's CPU time: watch {watch_id!r}"
            " and others get a snapshot now and then instead of updates; watch fewer and simpler areas"
        )
        # Without an id: it is no refusal of this watch, which an app would send again.
        self._writer.send(messages.encode_error(ErrorCode.RATE_LIMITED, text, retry_after_ms=round(seconds * 1000)))
