"""Origins: a wrong answer lets another site's page use its visitor's browser, or locks out our own pages."""

from __future__ import annotations

import pytest

from streamer.transport.cors import allowed_origin


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "may"),
    [
        (None, "s.example", ("https://a.example",), True),
        ("https://a.example", "s.example", ("https://a.example",), True),
        ("https://s.example", "s.example", ("https://a.example",), True),
        ("http://s.example:8080", "s.example:8080", ("https://a.example",), True),
        ("https://evil.example", "s.example", (), True),
        ("https://evil.example", "s.example", ("https://a.example",), False),
        ("https://a.example.evil.example", "s.example", ("https://a.example",), False),
        ("http://a.example", "s.example", ("https://a.example",), False),
        ("null", "s.example", ("https://a.example",), False),
        ("", "", ("https://a.example",), False),
        ("http://[", "s.example", ("https://a.example",), False),
    ],
)
def test_origins(origin: str | None, host: str | None, allowed: tuple[str, ...], may: bool) -> None:
    """A foreign page can't use its visitor's browser to open sockets here."""
    assert allowed_origin(origin, host, allowed) is may
