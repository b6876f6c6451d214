"""What is written to Redis and read back: a register lost or misread is a vendor at the wrong place."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.broker.redis_schema import (
    ALWAYS,
    NEVER,
    CellBatch,
    Reading,
    Registers,
    channel,
    parse_place,
    place_key,
    place_value,
    positions_key,
    versions_of,
)
from streamer.geo.grid import bus_cell
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import Part
from streamer.live.vendor import Card, Presence

NOW = 1_790_000_000_000
HERE = bus_cell(52.23, 21.01)


def served(vendor_id: str = "truck") -> LiveIndex:
    """An index with one vendor of a socket."""
    index = LiveIndex("one")
    index.put_card(vendor_id, Card(NOW, "the truck", True, None), NOW)
    index.put_presence(vendor_id, Presence(NOW, "one", 0), NOW)
    index.put_http(vendor_id, NOW - 5, NOW)
    index.put_fix(vendor_id, Fix(NOW, 52.23, 21.01, 90.0, None, 3, True), NOW)
    return index


def stored(index: LiveIndex, vendor_id: str = "truck") -> Registers:
    """The registers as a reader finds them."""
    batch = CellBatch()
    batch.add(index.vendors[vendor_id], Part.ALL)
    reading = Reading()
    assert reading.take([b"0", batch.fields])
    return reading.found[vendor_id]


def test_a_vendor_is_read_as_it_was_written() -> None:
    """Another process must show the same position, card and presence."""
    index, other = served(), LiveIndex("two")
    stored(index).put(other, NOW)
    one, two = index.vendors["truck"], other.vendors["truck"]
    assert (one.fix, one.card, one.presence, one.http) == (two.fix, two.card, two.presence, two.http)
    assert stored(index).versions() == versions_of(one) == (b"%013d" % (NOW - 3), b"%013d" % NOW, b"%013d" % (NOW - 5))


def test_a_message_has_each_register_once() -> None:
    """A register missing in a message would be seen only by processes that read."""
    batch = CellBatch()
    batch.add(served().vendors["truck"], Part.ALL, store=False)
    batch.gone.append("cart")
    assert batch.fields == []
    origin, *registers, gone = orjson.loads(batch.message("one"))
    assert (origin, [len(list_) for list_ in registers], gone) == ("one", [1, 1, 1, 1], ["cart"])


def test_a_vendor_without_registers_is_never_expired() -> None:
    """A vendor of which nothing is known yet may be served by a process that has not written it."""
    assert Registers().last_seen(lambda _: 0) is None
    assert Registers().versions() == (NEVER, NEVER, NEVER)
    assert Registers().version() == -1


@pytest.mark.parametrize(("ended", "heard", "last"), [(0, 7, 7), (5, 9, 5), (0, 1, 4)])
def test_the_last_sign_of_life(ended: int, heard: int, last: int) -> None:
    """A vendor stays on the map by the heartbeat of its process, or by the end of its connection."""
    presence = b"%013d%b" % (4, orjson.dumps(("truck", 4, "one", ended)))
    registers = Registers(presence=presence)
    assert registers.process() == "one"
    assert registers.last_seen(lambda _: heard) == last


@given(st.integers(0, 10**13 - 1), st.text("abcdef0123456789", min_size=1, max_size=8))
def test_a_place_is_read_as_it_was_written(version: int, process: str) -> None:
    """A vendor that is watched by id is found by its place."""
    place = parse_place(place_value(b"%013d" % version, HERE, process))
    assert place is not None
    assert place == (b"%013d" % version, HERE, process)


@pytest.mark.parametrize("value", [None, b"", b"x" * 20, b"0000000000001nowhere one"])
def test_invalid_places_are_ignored(value: bytes | None) -> None:
    """Another program's value under the key must not stop the process."""
    assert parse_place(value) is None


def test_keys_of_a_cell_share_a_hash_tag() -> None:
    """On a Redis Cluster a cell's hash and channel must be on one node."""
    tag = channel(HERE).partition(b"{")[2].partition(b"}")[0]
    assert b"{%b}" % tag in positions_key(HERE)
    assert b"{" not in place_key("truck")


def test_a_restarted_read_discards_its_results() -> None:
    """A cursor of one node means nothing to another."""
    reading = Reading()
    assert not reading.take([b"17", [b"!", b"epoch", b"ftruck", b"%013d[]" % NOW]])
    assert reading.found["truck"].version() == NOW
    reading.epoch = b"epoch"
    reading.restart()
    assert reading.cursor == 0
    assert reading.epoch is None
    assert not reading.found
    assert ALWAYS > b"%013d" % NOW
