"""A ping's identity and its COPY row."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.ingest.copy_rows import RowEncoder, decode_rows, id_floor, location_id
from streamer.protocol.fields import LAST_TIMESTAMP

timestamps = st.integers(0, LAST_TIMESTAMP)
vendor_ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
degrees = st.floats(-180, 180)


def test_the_id_of_a_ping_never_changes() -> None:
    """Another id for a ping already stored would double it when its app sends it again after an upgrade."""
    assert location_id("cm3xk2p4q000008l4h2v9e1zd", 1732467600000) == "cm3vuh7k0uaj3vv4jqliar6v8"


@given(vendor_ids, timestamps)
def test_an_id_looks_like_a_cuid(vendor_id: str, timestamp: int) -> None:
    """Prisma's clients validate ids as cuids, and their time prefix is what partitions go by."""
    id = location_id(vendor_id, timestamp)
    assert re.fullmatch(r"c[0-9a-z]{24}", id)
    assert int(id[1:9], 36) == timestamp


@given(vendor_ids, vendor_ids, timestamps, timestamps)
def test_ids_differ_and_sort_by_time(one: str, other: str, earlier: int, later: int) -> None:
    """Two pings with one id would be one ping; ids out of order would fall into the wrong day."""
    assert (location_id(one, earlier) == location_id(other, later)) == ((one, earlier) == (other, later))
    if earlier < later:
        assert location_id(one, earlier) < id_floor(later) <= location_id(other, later)


def test_floors_stay_within_what_an_id_can_hold() -> None:
    """A range that reaches before 1970 or past 2059 is asked for by a `from` or `to` of a client."""
    assert id_floor(-1) == id_floor(0) == "c00000000"
    assert id_floor(LAST_TIMESTAMP + 1) == id_floor(LAST_TIMESTAMP) == "czzzzzzzz"


@given(vendor_ids, st.lists(st.tuples(timestamps, degrees, degrees), min_size=1))
def test_rows_hold_the_pings(vendor_id: str, pings: list[tuple[int, float, float]]) -> None:
    """A row that says something else than its ping is a false history; the encoder's cache must not show."""
    encoder = RowEncoder(vendor_id)
    rows = encoder.encode(pings)
    assert len(rows) == len(pings) * encoder.size
    assert rows == b"".join(RowEncoder(vendor_id).row(*ping) for ping in pings)
    assert decode_rows(rows, encoder.size) == [
        (location_id(vendor_id, timestamp), vendor_id, lat, long, timestamp) for timestamp, lat, long in pings
    ]


@pytest.mark.parametrize("timestamp", [-1, -46_657, LAST_TIMESTAMP + 1, 10**18])
def test_a_timestamp_that_does_not_fit_is_refused(timestamp: int) -> None:
    """It would otherwise get the id of another ping and replace that."""
    encoder = RowEncoder("v")
    encoder.row(0, 1.0, 2.0)
    for _ in range(2):
        with pytest.raises(ValueError, match=str(timestamp)):
            encoder.row(timestamp, 1.0, 2.0)
    with pytest.raises(ValueError, match=str(timestamp)):
        location_id("v", timestamp)
