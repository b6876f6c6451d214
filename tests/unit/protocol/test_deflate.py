"""permessage-deflate: an answer that is wrong leaves a browser with frames that it can't inflate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol.deflate import accept_deflate

ACCEPTED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    "offers",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",  # Chromium, Firefox, Safari
        'permessage-deflate; client_max_window_bits="12"',
        "permessage-deflate; client_max_window_bits=15; server_max_window_bits=15",
        "permessage-deflate;server_no_context_takeover;client_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate",
        "permessage-deflate; server_max_window_bits=9, permessage-deflate",
    ],
)
def test_offers_that_are_accepted(offers: str) -> None:
    """Neither side keeps a window, whatever the client asks beside it."""
    assert accept_deflate(offers) == ACCEPTED


@pytest.mark.parametrize(
    "offers",
    [
        "",
        "x-webkit-deflate-frame",
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; unknown",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
    ],
)
def test_offers_that_are_not(offers: str) -> None:
    """A client that can't inflate what is compressed for all is served without compression."""
    assert accept_deflate(offers) is None


@given(st.text())
def test_any_offer(offers: str) -> None:
    """A header is a stranger's text: it breaks nothing."""
    assert accept_deflate(offers) in (None, ACCEPTED)
