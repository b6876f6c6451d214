"""A vendor connection's rules: after a wrong ack pings are lost, without an ack the app sends them forever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.errors import CloseCode, Disconnect, ErrorCode, ProtocolError
from streamer.ingest.session import BadMessageLimit, Pending, Received, VendorSession
from streamer.protocol.bounds import Bounds
from streamer.protocol.messages import Auth, Reject, Status

NOW = 1_732_467_600_000
MAX_AGE = 600_000


def session(most_bad: int = 20) -> VendorSession:
    return VendorSession(Bounds(), live_max_age=MAX_AGE, max_bad_messages=most_bad)


def ping(seq: int | None = None, lat: Any = 52.5, **members: Any) -> dict[str, Any]:
    return {"lat": lat, "long": 21.5, **({} if seq is None else {"seq": seq}), **members}


def send(to: VendorSession, message: Any) -> Received:
    return to.receive(orjson.dumps(message), NOW)


def pending(received: Received) -> Pending:
    assert received.pending is not None
    return received.pending


def answers(replies: Sequence[bytes]) -> list[tuple[str, int]]:
    return [(reply["type"], reply["seq"]) for reply in map(orjson.loads, replies)]


def test_nothing_is_acked_before_it_is_stored() -> None:
    """A ping's ack comes when it is settled, not when it is received."""
    vendor = session()
    received = send(vendor, ping(7))
    assert not received.replies
    assert [p.seq for p in received.pings] == [7]
    assert vendor.unsettled == 1
    assert answers(vendor.settled(pending(received))) == [("ack", 7)]
    assert vendor.unsettled == 0


def test_rejected_pings_take_no_memory_while_others_wait() -> None:
    """A phone with a wrong clock would fill the memory during an outage: its pings take no room in the buffer."""
    vendor = session()
    first = pending(send(vendor, ping(1)))
    for seq in range(2, 102):
        assert answers(send(vendor, ping(seq, timestamp=NOW + 3_600_000)).replies) == [("reject", seq)]
    assert vendor.unsettled <= 2
    assert answers(vendor.settled(first)) == [("ack", 101)]


def test_acks_are_cumulative() -> None:
    """A later message stored first is acked only when all before it are, and then by one ack."""
    vendor = session()
    first, second, third = (pending(send(vendor, ping())) for _ in range(3))
    assert vendor.settled(second) == []
    assert vendor.settled(third) == []
    assert answers(vendor.settled(first)) == [("ack", 3)]
    assert vendor.settled(first) == []


def test_a_reject_does_not_block_acks() -> None:
    """A ping that will never be stored is rejected, and later pings are acked."""
    vendor = session()
    received = send(vendor, {"type": "pings", "pings": [ping(), ping(lat=91), ping()]})
    assert answers(received.replies) == [("reject", 2)]
    assert [p.seq for p in received.pings] == [1, 3]
    assert answers(vendor.settled(pending(received))) == [("ack", 3)]


def test_rejected_alone() -> None:
    """With nothing before it unsettled, a message of rejects only is acked at once."""
    received = send(session(), ping(5, lat=91))
    assert answers(received.replies) == [("reject", 5), ("ack", 5)]
    assert received.pending is None
    assert not received.pings


def test_an_ack_does_not_pass_unstored_pings() -> None:
    """A reject is sent at once, but an ack beyond it would also ack pings that are not stored yet."""
    vendor = session()
    first = send(vendor, ping())
    assert answers(send(vendor, ping(lat=91)).replies) == [("reject", 2)]
    assert answers(vendor.settled(pending(first))) == [("ack", 2)]


def test_rejected_by_the_database() -> None:
    """What PostgreSQL refuses is rejected by its seq, before the ack that covers it."""
    vendor = session()
    received = send(vendor, {"type": "pings", "pings": [ping(), ping()]})
    replies = vendor.settled(pending(received), [Reject(2, ErrorCode.VENDOR_NOT_FOUND, "gone")])
    assert answers(replies) == [("reject", 2), ("ack", 2)]


def test_seq_left_out() -> None:
    """The server counts from 1, and on over its rejects."""
    vendor = session()
    assert [p.seq for p in send(vendor, ping()).pings] == [1]
    assert answers(send(vendor, ping(lat=None)).replies) == [("reject", 2)]
    assert [p.seq for p in send(vendor, ping()).pings] == [3]
    assert [p.seq for p in send(vendor, ping(10)).pings] == [10]
    assert vendor.last_seq == 10


def test_a_bad_message_uses_up_no_seq() -> None:
    """After a message that could not be read, the numbers go on where they were."""
    vendor = session()
    send(vendor, ping(4))
    for bad in ({"type": "pings", "pings": [ping(5), ping(5)]}, ping(4), {"type": "x"}):
        (error,) = send(vendor, bad).replies
        assert orjson.loads(error)["code"] == "ERR_INVALID_MESSAGE"
    assert [p.seq for p in send(vendor, ping(5)).pings] == [5]


def test_no_pings() -> None:
    """An empty list asks for nothing, is no fault, and uses up no seq, not even the first."""
    vendor = session(most_bad=2)
    send(vendor, {"type": "x"})
    assert send(vendor, {"type": "pings", "pings": []}) == Received()
    send(vendor, {"type": "x"})
    assert [p.seq for p in send(vendor, ping(-3)).pings] == [-3]


def test_status_and_auth() -> None:
    """Opening, closing and a new token are passed on."""
    vendor = session()
    assert send(vendor, {"type": "status", "open": False}) == Received(status=Status(False))
    assert send(vendor, {"type": "auth", "token": "t"}) == Received(auth=Auth("t"))


def test_live_is_the_newest() -> None:
    """Of a backlog only the newest position goes on the map, and none that is too old for it."""
    vendor = session()
    backlog = [ping(timestamp=NOW - age) for age in (5_000, 1_000, 3_000)]
    received = send(vendor, {"type": "pings", "pings": backlog})
    assert received.newest is not None
    assert received.newest.timestamp == NOW - 1_000
    assert len(received.pings) == 3
    received = send(vendor, ping(timestamp=NOW - MAX_AGE))
    assert received.newest == received.pings[0]
    received = send(vendor, ping(timestamp=NOW - MAX_AGE - 1))
    assert received.newest is None
    assert len(received.pings) == 1


@pytest.mark.parametrize("bad", [b"nonsense", b"[]", b'{"type":"x"}', b'{"lat":91,"long":0}', b'{"seq":1.5}'])
def test_patience(bad: bytes) -> None:
    """A client that does not speak this protocol is closed; one with an occasional error is not."""
    vendor = session(most_bad=3)
    for _ in range(5):
        for _ in range(2):
            assert vendor.receive(bad, NOW).replies
        send(vendor, ping())
    vendor.receive(bad, NOW)
    vendor.receive(bad, NOW)
    with pytest.raises(Disconnect, match="3 bad messages in a row") as closing:
        vendor.receive(bad, NOW)
    assert closing.value.close is CloseCode.NOT_THIS_PROTOCOL
    assert closing.value.code in ErrorCode


@pytest.mark.parametrize("good", [{"type": "status", "open": True}, {"type": "auth", "token": "t"}, ping()])
def test_patience_is_regained(good: dict[str, Any]) -> None:
    """A valid message resets the count of bad ones."""
    vendor = session(most_bad=2)
    for _ in range(5):
        vendor.receive(b"nonsense", NOW)
        send(vendor, good)


def test_patience_of_one() -> None:
    """The strictest setting closes at the first bad message."""
    with pytest.raises(Disconnect):
        BadMessageLimit(1).bad(ProtocolError(ErrorCode.INVALID_JSON, "no"))


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_any_order_of_settling(sizes: list[list[bool]], rnd: random.Random) -> None:
    """However the disk orders its work: acks rise, never cover what is unsettled, and in the end cover everything."""
    vendor = session(most_bad=1_000)
    waiting: list[tuple[Pending, list[int]]] = []
    unsettled: set[int] = set()
    acked: list[int] = []

    def note(replies: Sequence[bytes]) -> None:
        for kind, seq in answers(replies):
            if kind == "ack":
                assert seq > max(acked, default=0)
                assert all(open > seq for open in unsettled)
                acked.append(seq)

    def settle() -> None:
        done, seqs = waiting.pop(rnd.randrange(len(waiting)))
        unsettled.difference_update(seqs)
        note(vendor.settled(done))

    for goods in sizes:
        received = send(vendor, {"type": "pings", "pings": [ping(lat=50 if good else 91) for good in goods]})
        if received.pending is not None:
            seqs = [p.seq for p in received.pings]
            unsettled.update(seqs)
            waiting.append((received.pending, seqs))
        note(received.replies)
        while waiting and rnd.random() < 0.4:
            settle()
    while waiting:
        settle()
    assert vendor.unsettled == 0
    assert max(acked, default=None) == vendor.last_seq
