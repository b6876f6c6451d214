"""What a vendor app has not been told is stored. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from venta_client.errors import Violation


class Timed(Protocol):
    """Whatever has the time that names it: `timestamp`, epoch ms."""

    @property
    def timestamp(self) -> int: ...


P = TypeVar("P", bound=Timed)


class Outbox(Generic[P]):
    """Keeps each ping until it is acked or rejected, and gives it a new `seq` on every connection.

    No more than `limit` are kept; `add` answers whether there was room. `sent` counts pings at their first sending,
    `resent` those that went out again.
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
        """The newest seq that was given on this connection; 0 before the first."""
        return self._seq

    @property
    def unsent(self) -> int:
        """How many wait to be sent."""
        return len(self._unsent)

    @property
    def under_way(self) -> int:
        """How many were sent on this connection and are not answered for."""
        return len(self._sent)

    def add(self, ping: P) -> bool:
        """Keep one more ping to be sent."""
        if len(self) >= self._limit:
            return False
        self._unsent.append(ping)
        return True

    def restore(self, pings: Iterable[P]) -> None:
        """Take what an earlier run left, the oldest first: sent, maybe, and not known to be stored."""
        left = list(pings)
        self._sent = dict(enumerate(left, min(self._sent, default=0) - len(left))) | self._sent

    def drop_oldest(self) -> P | None:
        """Give up the oldest ping that is not under way, to make room, else the oldest; None when nothing waits."""
        if self._unsent:
            return self._unsent.popleft()
        if self._sent:
            return self._sent.pop(next(iter(self._sent)))
        return None

    def take(self, most: int) -> list[tuple[int, P]]:
        """The next pings to send, the oldest first, with the seq of each; they count as sent from now on."""
        return self._number(self._unsent.popleft() for _ in range(min(most, len(self._unsent))))

    def take_newest(self, since: int) -> list[tuple[int, P]]:
        """The newest ping alone, ahead of those before it, if it is from `since` (epoch ms) or later; else none.

        After a time offline customers see first where the vendor is. None is taken that is older than one taken so.
        """
        if not self._unsent or self._unsent[-1].timestamp < max(since, self._newest):
            return []
        ping = self._unsent.pop()
        self._newest = ping.timestamp
        self._jumped = self._jumped or bool(self._unsent)
        return self._number((ping,))

    def ack(self, seq: int) -> list[P]:
        """The pings that an ack settles; Violation for a seq that was never sent."""
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
        """The ping that a reject settles; Violation when it isn't one that waits."""
        try:
            return self._sent.pop(seq)
        except KeyError:
            raise Violation(f"seq {seq} was rejected, but no ping with that seq waits for an answer") from None

    def reconnected(self, durable: int | None) -> list[P]:
        """Start over on a new connection: what is not settled goes out once more. Returns what `durable` settles.

        Only the ping that `durable` names is taken as stored. The older ones are sent again, which must be harmless.
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
    """When a ping was taken."""
    return ping.timestamp
