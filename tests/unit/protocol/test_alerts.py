"""Alerts as clients write them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest

from streamer.errors import ProtocolError
from streamer.protocol.alerts import bounds_of, decode_alert, encode_event, merged, stored_definition
from streamer.settings import Settings

BOUNDS = bounds_of(Settings.model_construct())
NOW = 1_800_000_000_000
CIRCLE = {"center": {"lat": 52.0, "long": 21.0}, "radius": 500}
ASKED: dict[str, Any] = {"area": CIRCLE, "on": ["left", "entered", "left"], "url": "https://a.example/"}


def test_what_is_stored_means_the_same_when_it_is_read_again() -> None:
    """A process that takes an alert over would look at something else."""
    for changed in ({}, {"open": True, "quiet": 5}, {"area": None, "vendors": ["b", "a", "b"]}, {"metadata": {"a": 1}}):
        asked = decode_alert({**ASKED, **changed}, BOUNDS, NOW)
        stored = orjson.loads(orjson.dumps(asked.source))
        assert stored_definition(stored, asked.definition.quiet) == asked.definition
        assert stored["on"] == ["entered", "left"]


@pytest.mark.parametrize(
    ("area", "stored"),
    [
        (
            {"center": {"latitude": 52, "lng": 381.0, "note": "x" * 9999}, "radius": 500, "name": "\0"},
            {"center": {"lat": 52.0, "long": 21.0}, "radius": 500.0},
        ),
        (
            {"ne": {"lat": 1.0, "long": -179.99}, "sw": {"lat": 0.9, "long": 179.99, "a": []}},
            {"ne": {"lat": 1.0, "long": -179.99}, "sw": {"lat": 0.9, "long": 179.99}},
        ),
        (
            {"polygon": [[21, 52, "x" * 9999], [21.1, 52.0], [21.0, 52.1], [21, 52]]},
            {"polygon": [[21.0, 52.0], [21.1, 52.0], [21.0, 52.1]]},
        ),
    ],
)
def test_of_an_area_only_its_corners_are_kept(area: dict[str, Any], stored: dict[str, Any]) -> None:
    """Unknown members are ignored: stored, a megabyte of them would be read by each process that takes the alert."""
    asked = decode_alert({**ASKED, "area": area}, BOUNDS, NOW)
    assert orjson.loads(orjson.dumps(asked.source["area"])) == stored
    assert stored_definition(asked.source, asked.definition.quiet) == asked.definition


def test_metadata_may_have_whatever_can_be_stored() -> None:
    """A backslash before `u0000` is text, and no null character."""
    metadata = {"a": "\\u0000", "b": "\\\\u0000", "c": "ż\n"}
    assert decode_alert({**ASKED, "metadata": metadata}, BOUNDS, NOW).source["metadata"] == metadata
    for wrong in ("\0", "\\\0"):
        with pytest.raises(ProtocolError, match="null character"):
            decode_alert({**ASKED, "metadata": {"a": wrong}}, BOUNDS, NOW)


def test_metadata_is_never_too_deep_to_be_listed() -> None:
    """JSON is read deeper than it is written: an alert that was created could not be stored, sent or listed."""
    metadata: dict[str, Any] = {}
    for _ in range(200):
        metadata = {"a": metadata}
    with suppress(ProtocolError):
        for _ in range(60):
            assert decode_alert({**ASKED, "metadata": metadata}, BOUNDS, NOW).source["metadata"] == metadata
            orjson.dumps({"alerts": [{"metadata": metadata}]})
            metadata = {"a": metadata}
    with pytest.raises(ProtocolError, match="nested too deeply"):
        decode_alert({**ASKED, "metadata": metadata}, BOUNDS, NOW)


def test_a_lower_limit_ends_no_alert() -> None:
    """An operator lowers STREAMER_ALERT_EXTENT, and alerts of before could not be read any more."""
    wide = {"center": {"lat": 52.0, "long": 21.0}, "radius": 90_000}
    with pytest.raises(ProtocolError):
        decode_alert({**ASKED, "area": wide}, BOUNDS, NOW)
    assert stored_definition({"area": wide, "on": ["left"]}, 0).area is not None


def test_a_patch_replaces_merges_and_removes() -> None:
    """RFC 7386; an alert with both an area and a list could not be."""
    present = {**ASKED, "open": True, "metadata": {"a": 1, "b": 2}}
    assert merged(present, {"vendors": ["v"]}).keys() == present.keys() - {"area"} | {"vendors"}
    assert "open" not in merged(present, {"open": None})
    assert merged(present, {"metadata": {"a": None, "c": 3}})["metadata"] == {"b": 2, "c": 3}
    assert "metadata" not in merged(present, {"metadata": None})
    with pytest.raises(ProtocolError, match="nothing to change"):
        merged(present, {"secret": "mine"})


def test_an_event_is_as_the_contract_says() -> None:
    """A receiver parses these names."""
    event = orjson.loads(encode_event("entered", "c1", {"vendorId": "v"}, NOW))
    assert event == {"type": "vendor.entered", "alertId": "c1", "vendor": {"vendorId": "v"}, "at": NOW}
    assert orjson.loads(encode_event("left", "c1", {}, NOW, {"user": 7}))["metadata"] == {"user": 7}
