"""Values of messages: numbers, times and positions as apps write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.fields import LAST_TIMESTAMP, coordinates, decode_object, epoch_ms, measure, shown


@given(st.integers(10**11, LAST_TIMESTAMP))
def test_every_way_to_write_a_time_is_the_same_millisecond(timestamp: int) -> None:
    """An app that changes from numbers to text must not store its pings twice."""
    moment = datetime.fromtimestamp(timestamp // 1000, UTC).replace(microsecond=timestamp % 1000 * 1000)
    assert epoch_ms(timestamp) == epoch_ms(moment.isoformat()) == timestamp


@given(st.floats(-90, 90), st.floats(-180, 180), st.integers(-9, 9))
def test_longitudes_wrap_only_where_they_may(lat: float, long: float, turns: int) -> None:
    """A map wraps the world; a ping beyond it comes from a broken app and must not be stored somewhere else."""
    if turns and not -180 <= long + 360 * turns <= 180:
        with pytest.raises(ProtocolError) as wrong:
            coordinates(lat, long + 360 * turns)
        assert wrong.value.code is ErrorCode.INVALID_COORDINATES
    wrapped = coordinates(lat, long + 360 * turns, wrap=True)[1]
    assert -180 <= wrapped <= 180
    assert abs((wrapped - long + 180) % 360 - 180) < 1e-9


@pytest.mark.parametrize("value", [None, "", "5", True, [], -0.5, 361, float("nan"), float("inf")])
def test_an_unusable_measure_is_none(value: Any) -> None:
    """Phones send -1 for an unknown heading: the ping is stored without it."""
    assert measure(value, 360.0) is None


@given(st.floats(0, 360))
def test_a_usable_measure_stays(value: float) -> None:
    """A heading that is rounded or shifted turns the arrow on the map."""
    assert measure(value, 360.0) == value


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_a_value_in_an_error_is_short(value: Any) -> None:
    """A value of any size can't flood a log through the error about it."""
    assert len(shown(value)) < 150


@given(st.binary(max_size=100))
def test_only_objects_are_decoded(data: bytes) -> None:
    """Whatever arrives is an object or is refused with a code; anything else would end the connection's task."""
    try:
        decoded = decode_object(data)
    except ProtocolError:
        return
    assert isinstance(decoded, dict)
