"""What a vendor app has not been told is stored. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from loadtest.errors import Violation


class Ping(NamedTuple):
    """One position: `timestamp` ms, degrees, and when it was due to be sent (epoch ms)."""

    timestamp: int
    lat: float
    long: float
    due: int


class Outbox:
    """Keeps each ping until it is acked or rejected, and gives it a new `seq` on every connection.

    No more than `limit` are kept; `add` answers whether there was room. `sent` counts pings at their first sending,
    `resent` those that went out again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unsent: deque[Ping] = deque()
        self._sent: dict[int, Ping] = {}
        self._seq = 0
        self._again = 0
        self.sent = 0
        self.resent = 0

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    def add(self, ping: Ping) -> bool:
        """Keep one more ping to be sent."""
        if len(self) >= self._limit:
            return False
        self._unsent.append(ping)
        return True

    def take(self, most: int) -> list[tuple[int, Ping]]:
        """The next pings to send, with the seq of each; they count as sent from now on."""
        batch = []
        for _ in range(min(most, len(self._unsent))):
            ping = self._unsent.popleft()
            self._seq += 1
            self._sent[self._seq] = ping
            batch.append((self._seq, ping))
        again = min(self._again, len(batch))
        self._again -= again
        self.resent += again
        self.sent += len(batch) - again
        return batch

    def ack(self, seq: int) -> list[Ping]:
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

    def reject(self, seq: int) -> Ping:
        """The ping that a reject settles; Violation when it isn't one that waits."""
        try:
            return self._sent.pop(seq)
        except KeyError:
            raise Violation(f"seq {seq} was rejected, but no ping with that seq waits for an answer") from None

    def reconnected(self, durable: int | None) -> list[Ping]:
        """Start over on a new connection: what is not settled goes out once more. Returns what `durable` settles.

        Only the ping that `durable` names is taken as stored. The older ones are sent again, which must be harmless.
        """
        again = list(self._sent.values())
        settled = [ping for ping in again if ping.timestamp == durable]
        again = [ping for ping in again if ping.timestamp != durable]
        self._sent.clear()
        self._unsent.extendleft(reversed(again))
        self._again += len(again)
        self._seq = 0
        return settled


def encode(batch: Sequence[tuple[int, Ping]]) -> bytes:
    """One message for one or more pings, positions in full precision."""
    if len(batch) == 1:
        seq, ping = batch[0]
        return (
            f'{{"type":"ping","seq":{seq},"lat":{ping.lat!r},"long":{ping.long!r},"timestamp":{ping.timestamp}}}'
        ).encode()
    pings = ",".join(
        f'{{"seq":{seq},"lat":{ping.lat!r},"long":{ping.long!r},"timestamp":{ping.timestamp}}}' for seq, ping in batch
    )
    return f'{{"type":"pings","pings":[{pings}]}}'.encode()
