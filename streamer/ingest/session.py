"""The rules of one vendor connection: the order of seq, what is live, what may be acked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamer.counters import Counters
from streamer.errors import CloseCode, Disconnect, ErrorCode, ProtocolError
from streamer.protocol.bounds import Bounds
from streamer.protocol.messages import (
    Auth,
    Ping,
    Pings,
    Reject,
    Status,
    decode_vendor,
    encode_ack,
    encode_error,
    encode_reject,
)

CLOCK_ERRORS = (ErrorCode.TIMESTAMP_IN_FUTURE, ErrorCode.TIMESTAMP_TOO_OLD)


@dataclass(eq=False, slots=True)
class Pending:
    """The pings of one message; `last_seq` is acked once these and all before them are stored or rejected."""

    last_seq: int
    settled: bool = False


@dataclass(slots=True)
class Received:
    """The effects of one message: replies to send, pings to store, the fix to show, a status or token to apply."""

    replies: Sequence[bytes] = ()
    pings: Sequence[Ping] = ()
    pending: Pending | None = None
    newest: Ping | None = None
    status: Status | None = None
    auth: Auth | None = None


class BadMessageLimit:
    """Ends a connection after too many consecutive bad messages: it does not speak this protocol."""

    __slots__ = ("_bad", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._bad = 0

    def good(self) -> None:
        """Count a valid message."""
        self._bad = 0

    def bad(self, cause: ProtocolError) -> None:
        """Count a bad message; raise Disconnect when there are too many."""
        self._bad += 1
        if self._bad >= self._most:
            raise Disconnect(
                CloseCode.NOT_THIS_PROTOCOL,
                cause.code,
                f"{self._bad} bad messages in a row, the last: {cause.message}",
            )


class VendorSession:
    """The rules of one vendor connection. The caller stores the pings and then calls `settled`."""

    def __init__(
        self, bounds: Bounds, *, live_max_age: int, max_bad_messages: int, counters: Counters | None = None
    ) -> None:
        self.last_seq: int | None = None
        self._bounds = bounds
        self._live_max_age = live_max_age
        self._counters = counters or Counters()
        self._bad_messages = BadMessageLimit(max_bad_messages)
        self._pending: list[Pending] = []

    @property
    def unsettled(self) -> int:
        """The number of messages whose pings are not all stored or rejected yet."""
        return len(self._pending)

    def receive(self, data: str | bytes, now: int) -> Received:
        """Handle a message that arrived at `now` (epoch ms); raise Disconnect when the connection has to end."""
        try:
            message = decode_vendor(data, now, self.last_seq, self._bounds)
        except ProtocolError as wrong:
            self._counters.refused[wrong.code] += 1
            reply = encode_error(wrong.code, wrong.message, retry_after_ms=wrong.retry_after_ms)
            self._bad_messages.bad(wrong)
            return Received([reply])
        if type(message) is Pings:
            return self._pings(message, now)
        self._bad_messages.good()
        if type(message) is Status:
            return Received(status=message)
        assert type(message) is Auth
        return Received(auth=message)

    def _pings(self, message: Pings, now: int) -> Received:
        received = Received()
        if message.rejected:
            self._counters.reject(reject.code for reject in message.rejected)
            received.replies = [encode_reject(reject) for reject in message.rejected]
        if not (message.accepted or message.rejected):
            self._bad_messages.good()
            return received  # an empty list uses no seq
        # A wrong clock does not count as a bad message: the app can correct it with hello.time.
        if not message.accepted and message.rejected[-1].code not in CLOCK_ERRORS:
            self._bad_messages.bad(ProtocolError(message.rejected[-1].code, message.rejected[-1].message))
        else:
            self._bad_messages.good()
        self.last_seq = message.last_seq
        if not message.accepted and self._pending and self._pending[-1].settled:
            self._pending[-1].last_seq = message.last_seq  # merged, as a phone may send many during an outage
            return received
        pending = Pending(message.last_seq)
        self._pending.append(pending)
        if message.accepted:
            received.pending = pending
            received.pings = message.accepted
            newest = max(message.accepted, key=timestamp_of) if len(message.accepted) > 1 else message.accepted[0]
            if newest.timestamp >= now - self._live_max_age:
                received.newest = newest
        else:
            received.replies = [*received.replies, *self.settled(pending)]
        return received

    def join(self, pending: Pending) -> None:
        """Merge the newest message's pings into `pending`, the message before it: both are settled together."""
        pending.last_seq = self._pending[-1].last_seq
        while self._pending[-1] is not pending:
            self._pending.pop()

    def settled(self, pending: Pending, rejected: Sequence[Reject] = ()) -> list[bytes]:
        """Returns the replies to send once these pings are committed or rejected."""
        replies = [encode_reject(reject) for reject in rejected] if rejected else []
        pending.settled = True
        settled = 0
        while settled < len(self._pending) and self._pending[settled].settled:
            settled += 1
        if settled:
            replies.append(encode_ack(self._pending[settled - 1].last_seq))
            del self._pending[:settled]
        return replies


def timestamp_of(ping: Ping) -> int:
    """Returns when a ping was taken."""
    return ping.timestamp
