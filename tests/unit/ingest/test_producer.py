"""Pings of a connection put into the batcher: in their order, joined where that is cheap, slowed down when too many."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from streamer.ingest.batcher import Batcher, Chunk, Rejected
from streamer.ingest.copy_rows import RowEncoder, decode_rows
from streamer.ingest.producer import Producer, encoded
from streamer.ingest.rate_limit import Allowance
from streamer.ingest.session import Pending, VendorSession
from streamer.protocol.bounds import Bounds
from streamer.protocol.messages import Ping

NOW = 1_732_467_600_000
LIVE = 600_000


def ping(seq: int, timestamp: int) -> Ping:
    return Ping(seq, timestamp, 52.0, 21.0, None, None)


class Connection:
    """A producer over a batcher that stores nothing: what it was offered stays there to be seen."""

    def __init__(self, max_pings: int = 1_000, rate: float = 100.0, burst: int = 500) -> None:
        async def store(chunks: list[Chunk], retry: bool) -> Mapping[Chunk, Rejected]:
            return {}

        self.time = 0.0
        self.batcher = Batcher(store, max_pings=max_pings)
        self.session = VendorSession(Bounds(), live_max_age=LIVE, max_bad_messages=10)
        self.settled: list[int] = []
        self.allowance = Allowance(rate, burst, 0.0)
        self.producer = Producer(
            *(self.batcher, self.session, self.allowance, "vendor", LIVE),
            *(lambda pending, rejected: self.settled.append(pending.last_seq), lambda: self.time),
        )

    def take(self, *pings: Ping) -> Chunk | None:
        pending = Pending(pings[-1].seq)
        self.session._pending.append(pending)
        return self.producer.take(pings, pending, NOW)


def test_messages_that_wait_become_one_chunk() -> None:
    """Otherwise a chunk for each of a thousand pings a second would cost the batcher more than the pings."""
    connection = Connection()
    for seq in range(1, 6):
        assert connection.take(ping(seq, NOW + seq)) is None
    chunk = connection.producer._last
    assert chunk is not None
    assert list(chunk.seqs) == [1, 2, 3, 4, 5]
    assert connection.batcher.pings == connection.allowance.unsettled == 5


def test_live_pings_do_not_overtake_the_backlog_of_their_connection() -> None:
    """If one did, an app that reconnects would take its backlog for stored and never send it again."""
    connection = Connection()
    connection.take(ping(1, NOW - LIVE - 1))
    connection.take(ping(2, NOW))
    last = connection.producer._last
    assert last is not None
    assert (last.live, list(last.seqs)) == (False, [1, 2])


def test_a_backlog_waits_for_the_live_pings_before_it() -> None:
    """Pings collected in a tunnel, sent after a live one, are committed after it: the stored pings are a prefix."""
    connection = Connection()
    connection.take(ping(1, NOW))
    live = connection.producer._last
    connection.take(ping(2, NOW - LIVE - 1))
    backlog = connection.producer._last
    assert backlog is not None
    assert backlog.after is live


async def test_a_full_buffer_gives_the_chunk_back_and_forgets_it_when_cancelled() -> None:
    """A vendor whose connection ends while it waits must not count as having pings under way forever."""
    connection = Connection(max_pings=2)
    assert connection.take(ping(1, NOW), ping(2, NOW + 1)) is None
    chunk = connection.take(ping(3, NOW + 2))
    assert chunk is not None
    assert connection.allowance.unsettled == 3
    waiting = asyncio.create_task(connection.producer.put(chunk))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert connection.allowance.unsettled == 2


async def test_a_vendor_that_sends_too_much_rests_until_its_allowance_recovers() -> None:
    """One phone with a stuck timer must not take the buffer from everyone else."""
    connection = Connection(rate=10.0, burst=5)
    connection.take(*(ping(seq, NOW + seq) for seq in range(8)))
    assert connection.producer.excessive
    resting = asyncio.create_task(connection.producer.rest())
    await asyncio.sleep(0)
    assert not resting.done()
    chunk = connection.producer._last
    assert chunk is not None
    chunk.settled(chunk, {})
    await resting
    assert not connection.producer.excessive
    assert connection.settled == [7]


def test_a_chunk_has_each_ping_and_the_newest_position() -> None:
    """A newest position taken from the last ping would move a vendor back when an app sends out of order."""
    encoder = RowEncoder("vendor")
    pings = [ping(1, NOW), ping(2, NOW + 5), ping(3, NOW + 2)]
    seqs, rows, newest = encoded(encoder, pings, NOW)
    assert list(seqs) == [1, 2, 3]
    assert [row[4] for row in decode_rows(rows, encoder.size)] == [NOW, NOW + 5, NOW + 2]
    assert newest.timestamp == NOW + 5
    assert encoded(encoder, pings[:1], NOW) == ((1,), encoder.row(NOW, 52.0, 21.0), encoded(encoder, pings[:1], NOW)[2])
