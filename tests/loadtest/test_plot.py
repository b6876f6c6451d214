"""Plots: any line fits its frame, axes have round numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.reports.plot import Line, Plot, draw, nice
from tests.support.paths import ROOT

SCHEMA_FILE = ROOT / "loadtest/schema.json"


@given(st.lists(st.tuples(st.floats(0, 1e6), st.one_of(st.none(), st.floats(0, 1e9))), max_size=20), st.booleans())
def test_any_line_can_be_drawn(points: list[tuple[float, float | None]], dots: bool) -> None:
    """A run without a single delay, or with one that took a day, still has a page; nothing leaves the frame."""
    drawn = draw(Plot("a", [Line("b", sorted(points, key=lambda point: point[0]), dots=dots)], "s", "ms", limit=5.0))
    for x, y in re.findall(r"([\d.]+),([\d.]+)(?=[ \"])", "".join(re.findall(r'points="[^"]*"', drawn))):
        assert 40 <= float(x) <= 360
        assert 0 <= float(y) <= 210
    assert "nan" not in drawn
    assert (drawn == "") == all(value is None for _, value in points)


@given(st.floats(1e-6, 1e12))
def test_axes_have_round_numbers(highest: float) -> None:
    """Two to eight of them, and the last is not below the data."""
    ticks = nice(highest)
    assert 2 <= len(ticks) <= 8
    assert ticks[-1] >= highest * (1 - 1e-6)


@pytest.mark.parametrize(("limit", "drawn"), [(200.0, False), (10.0, True)])
def test_a_threshold_far_above_a_curve_does_not_flatten_it(limit: float, drawn: bool) -> None:
    """A curve of 6 ms under a threshold of 200 ms fills its plot; the threshold stands in the legend."""
    figure = draw(Plot("delay", [Line("p99", [(0, 3.0), (1, 6.0), (2, 4.0)])], "s", "ms", limit=limit))
    ticks = [float(tick) for tick in re.findall(r'text-anchor="end">([\d.]+)<', figure)]
    assert max(ticks) == (10 if drawn else 6)
    assert f"{limit:g}" in figure
