"""The pings that the server has not acked yet. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from venta_client.errors import Violation


class Timed(Protocol):
    """An item identified by its `timestamp`, epoch ms."""

    @property
    def timestamp(self) -> int: ...


P = TypeVar("P", bound=Timed)


class Outbox(Generic[P]):
    """Keeps each ping until it is acked or rejected, with a new `seq` on every connection.

    At most `limit` pings are kept; `add` returns whether there was room. `sent` counts pings sent for the first time,
    `resent` pings sent again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unsent: deque[P] = deque()
        self._sent: dict[int, P] = {}
        self._seq = 0
        self._again = 0
        self._newest = -1
        self._jumped = False
        self.sent = 0
        self.resent = 0

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    @property
    def seq(self) -> int:
        """The last seq of this connection; 0 before the first."""
        return self._seq

    @property
    def unsent(self) -> int:
        """The number of pings to send."""
        return len(self._unsent)

    @property
    def in_flight(self) -> int:
        """The number of pings sent on this connection without an answer yet."""
        return len(self._sent)

    def add(self, ping: P) -> bool:
        """Adds a ping to send; returns whether there was room."""
        if len(self) >= self._limit:
            return False
        self._unsent.append(ping)
        return True

    def restore(self, pings: Iterable[P]) -> None:
        """Adds the pings of an earlier run, oldest first; they may have been sent, but were not acked."""
        left = list(pings)
        self._sent = dict(enumerate(left, min(self._sent, default=0) - len(left))) | self._sent

    def drop_oldest(self) -> P | None:
        """Removes and returns the oldest ping that is not in flight, or else the oldest one; None if empty."""
        if self._unsent:
            return self._unsent.popleft()
        if self._sent:
            return self._sent.pop(next(iter(self._sent)))
        return None

    def take(self, most: int) -> list[tuple[int, P]]:
        """Returns the next pings to send, oldest first, with their seqs; they are in flight from now on."""
        return self._number(self._unsent.popleft() for _ in range(min(most, len(self._unsent))))

    def take_newest(self, since: int) -> list[tuple[int, P]]:
        """Returns only the newest ping, ahead of older ones, if it is from `since` (epoch ms) or later; else none.

        So after a time offline customers first see the current position. A ping older than the last such one is not
        returned.
        """
        if not self._unsent or self._unsent[-1].timestamp < max(since, self._newest):
            return []
        ping = self._unsent.pop()
        self._newest = ping.timestamp
        self._jumped = self._jumped or bool(self._unsent)
        return self._number((ping,))

    def ack(self, seq: int) -> list[P]:
        """Removes and returns the acked pings; raises Violation for a seq that was never sent."""
        if seq > self._seq:
            raise Violation(f"seq {seq} was acked, but on this connection only {self._seq} pings were sent")
        settled = []
        while self._sent:
            first = next(iter(self._sent))
            if first > seq:
                break
            settled.append(self._sent.pop(first))
        return settled

    def reject(self, seq: int) -> P:
        """Removes and returns a rejected ping; raises Violation if none with this seq is in flight."""
        try:
            return self._sent.pop(seq)
        except KeyError:
            raise Violation(f"seq {seq} was rejected, but no ping with that seq waits for an answer") from None

    def reconnected(self, durable: int | None) -> list[P]:
        """Starts over on a new connection: pings without an answer are sent again. Returns the pings that are stored.

        Only the ping with the timestamp `durable` is known to be stored. The server ignores duplicates of others.
        """
        again = list(self._sent.values())
        settled = [ping for ping in again if ping.timestamp == durable]
        again = [ping for ping in again if ping.timestamp != durable]
        self._sent.clear()
        self._unsent.extendleft(reversed(again))
        if self._jumped:
            self._unsent = deque(sorted(self._unsent, key=timestamp_of))
        self._again += len(again)
        self._seq = 0
        self._newest = -1
        self._jumped = False
        return settled

    def _number(self, pings: Iterable[P]) -> list[tuple[int, P]]:
        batch = []
        for ping in pings:
            self._seq += 1
            self._sent[self._seq] = ping
            batch.append((self._seq, ping))
        again = min(self._again, len(batch))
        self._again -= again
        self.resent += again
        self.sent += len(batch) - again
        return batch


def timestamp_of(ping: Timed) -> int:
    """Returns the timestamp of a ping."""
    return ping.timestamp
