"""Alerts as clients write them."""

from __future__ import annotations

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
