"""Who may be seen: a mistake here shows strangers where somebody lives."""

from __future__ import annotations

import pytest

from streamer.live.vendor import Card
from streamer.live.visibility import Visibility


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_every_case(is_open: bool, hidden: bool, online: bool) -> None:
    """By default all are shown but those that hide; each setting leaves out one kind."""
    card = Card(1, "Truck", is_open, None, hidden)
    concealed = hidden and not is_open
    assert Visibility().allows(card, online) == (not concealed)
    assert Visibility(closed=False).allows(card, online) == is_open
    assert Visibility(offline=False).allows(card, online) == (online and not concealed)
