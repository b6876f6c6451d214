"""The client's address: a wrong one locks out all clients behind one proxy, or limits none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.transport.client_address import client_address


@pytest.mark.parametrize(
    ("peer", "forwarded", "hops", "address"),
    [
        ("203.0.113.7", [], 0, "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], 0, "203.0.113.7"),  # the header is not trusted without a proxy
        ("10.0.0.1", ["198.51.100.1"], 1, "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], 1, "198.51.100.1"),  # what the client wrote itself
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1"], 1, "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.0.0.2"], 2, "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1"], 3, "198.51.100.1"),
        ("10.0.0.1", [], 1, "10.0.0.1"),
        ("10.0.0.1", ["unknown"], 1, "10.0.0.1"),
        ("10.0.0.1", [" 198.51.100.1:4711 "], 1, "198.51.100.1"),
        ("10.0.0.1", ['"[2001:db8:1:2:3:4:5:6]:4711"'], 1, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", [], 0, "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", [], 0, "203.0.113.7"),
        ("fe80::1%eth0", [], 0, "fe80::/64"),
        ("127.0.0.1", [], 0, None),
        ("::1", [], 0, None),
        ("127.0.0.1", ["198.51.100.1"], 1, "198.51.100.1"),
        (None, [], 0, None),
        ("", [""], 1, None),
    ],
)
def test_the_client_address_behind_proxies(
    peer: str | None, forwarded: list[str], hops: int, address: str | None
) -> None:
    """Behind proxies the client's own address, not the proxy's, and not one that the client made up."""
    assert client_address(peer, forwarded, hops) == address


@given(st.lists(st.text()), st.integers(0, 5), st.text() | st.none())
def test_any_header(forwarded: list[str], hops: int, peer: str | None) -> None:
    """A header is a stranger's text: it breaks nothing."""
    client_address(peer, forwarded, hops)
