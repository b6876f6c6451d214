"""A vendor app must never lose a ping; in a load test it would look like a fault of the server."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from venta_client.errors import Violation
from venta_client.outbox import Outbox
from venta_client.ping import Ping, encode


def ping(timestamp: int) -> Ping:
    """Returns a ping with a timestamp; the position does not matter."""
    return Ping(timestamp, 52.0, 21.0)


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "ack", "reject", "reconnect"]), st.integers(1, 5))))
def test_every_ping_is_kept_until_it_is_answered_for(steps: list[tuple[str, int]]) -> None:
    """A ping is either kept or settled exactly once, and pings are sent in order."""
    outbox: Outbox[Ping] = Outbox(10_000)
    added = 0
    settled: list[int] = []
    in_flight: dict[int, int] = {}
    for step, number in steps:
        if step == "add":
            for _ in range(number):
                added += 1
                assert outbox.add(ping(added))
        elif step == "take":
            batch = outbox.take(number)
            seqs = [seq for seq, _ in batch]
            assert seqs == sorted(seqs)
            assert all(seq > max(in_flight, default=0) for seq in seqs)
            in_flight |= {seq: item.timestamp for seq, item in batch}
            assert list(in_flight.values()) == sorted(in_flight.values())
        elif step == "ack" and in_flight:
            upto = sorted(in_flight)[min(number, len(in_flight)) - 1]
            acked = [item.timestamp for item in outbox.ack(upto)]
            assert acked == [in_flight.pop(seq) for seq in sorted(in_flight) if seq <= upto]
            settled += acked
        elif step == "reject" and in_flight:
            seq = sorted(in_flight)[min(number, len(in_flight)) - 1]
            assert outbox.reject(seq).timestamp == in_flight[seq]
            settled.append(in_flight.pop(seq))
        elif step == "reconnect":
            durable = min(in_flight.values(), default=None) if number % 2 else None
            settled += [item.timestamp for item in outbox.reconnected(durable)]
            in_flight = {}
    assert len(outbox) == added - len(settled)
    rest = [item.timestamp for item in outbox.reconnected(None)]
    rest += [item.timestamp for _, item in outbox.take(100_000)]
    assert sorted(settled + rest) == list(range(1, added + 1))


def test_first_and_repeated_sendings_are_counted_apart() -> None:
    """`sent` must be comparable with the number of rows, so it excludes resends."""
    outbox: Outbox[Ping] = Outbox(10)
    for timestamp in range(5):
        outbox.add(ping(timestamp))
    outbox.take(3)
    outbox.ack(1)
    assert outbox.reconnected(None) == []
    outbox.take(1)
    outbox.reconnected(None)
    outbox.take(10)
    assert (outbox.sent, outbox.resent) == (5, 3)


def test_a_full_outbox_takes_no_more() -> None:
    """An app whose server is down must not use unlimited memory."""
    outbox: Outbox[Ping] = Outbox(2)
    assert [outbox.add(ping(timestamp)) for timestamp in range(3)] == [True, True, False]


def test_answers_to_what_was_never_sent_are_violations() -> None:
    """A server can't have stored a ping that was never sent: the client must report such an ack."""
    outbox: Outbox[Ping] = Outbox(10)
    outbox.add(ping(1))
    outbox.take(1)
    with pytest.raises(Violation, match="seq 2 was acked, but on this connection only 1 pings were sent"):
        outbox.ack(2)
    with pytest.raises(Violation, match="seq 9 was rejected"):
        outbox.reject(9)


@given(
    st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180), st.integers(0, 2**41)), min_size=1, max_size=5),
    st.integers(1, 1000),
)
def test_positions_go_out_in_full_precision(places: list[tuple[float, float, int]], first: int) -> None:
    """Stored rows are compared with sent pings: rounding would look like a fault of the server."""
    batch = [(first + at, Ping(when, lat, long)) for at, (lat, long, when) in enumerate(places)]
    message = orjson.loads(encode(batch))
    sent = message["pings"] if len(batch) > 1 else [message]
    assert message["type"] == ("pings" if len(batch) > 1 else "ping")
    assert [(item["seq"], item["lat"], item["long"], item["timestamp"]) for item in sent] == [
        (seq, item.lat, item.long, item.timestamp) for seq, item in batch
    ]


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "newest", "reconnect"]), st.integers(1, 5))))
def test_the_newest_goes_first_and_none_is_forgotten_for_it(steps: list[tuple[str, int]]) -> None:
    """The newest ping is sent before the backlog, which is then sent in order."""
    outbox: Outbox[Ping] = Outbox(10_000)
    added = 0
    gone: list[int] = []
    for step, number in steps:
        if step == "add":
            for _ in range(number):
                added += 1
                outbox.add(ping(added))
        elif step == "take":
            gone += [item.timestamp for _, item in outbox.take(number)]
        elif step == "newest":
            batch = outbox.take_newest(0)
            assert [item.timestamp for _, item in batch] == ([added] if added and added not in gone else [])
            gone += [item.timestamp for _, item in batch]
        else:
            outbox.reconnected(None)
            gone = []
    gone += [item.timestamp for _, item in outbox.take(100_000)]
    assert sorted(gone) == list(range(1, added + 1))
    assert outbox.unsent == 0
    assert outbox.in_flight == added
    outbox.reconnected(None)
    assert [item.timestamp for _, item in outbox.take(100_000)] == list(range(1, added + 1))


def test_an_old_ping_has_no_right_of_way() -> None:
    """A vendor that was offline for a day is not shown at its position of a day ago."""
    outbox: Outbox[Ping] = Outbox(10)
    outbox.add(ping(5))
    assert outbox.take_newest(6) == []
    assert [seq for seq, _ in outbox.take_newest(5)] == [1]


def test_the_oldest_makes_room() -> None:
    """A full queue drops its oldest ping, which is worth least, and returns it."""
    outbox: Outbox[Ping] = Outbox(3)
    for timestamp in range(3):
        outbox.add(ping(timestamp))
    outbox.take(2)
    assert outbox.drop_oldest() == ping(2)  # pings in flight may still be stored
    assert outbox.drop_oldest() == ping(0)
    assert outbox.ack(2) == [ping(1)]
    assert outbox.drop_oldest() is None


def test_heading_speed_and_accuracy_go_along() -> None:
    """The phone's heading, speed and accuracy are sent, too."""
    sent = orjson.loads(encode([(7, Ping(5, 52.5, 21, 90.0, 4.25, 8))]))
    assert sent == {
        "type": "ping",
        "seq": 7,
        "timestamp": 5,
        "lat": 52.5,
        "long": 21,
        "heading": 90.0,
        "speed": 4.25,
        "accuracy": 8,
    }
