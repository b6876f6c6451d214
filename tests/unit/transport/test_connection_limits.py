"""Who counts as whom: a limit that counts wrongly locks out a town behind one proxy, or nobody at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import CloseCode, Disconnect
from streamer.transport.connection_limits import ConnectionLimits, allowed_origin, client_address


@pytest.mark.parametrize(
    ("peer", "forwarded", "hops", "address"),
    [
        ("203.0.113.7", [], 0, "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], 0, "203.0.113.7"),  # nobody asked for that header: it may be a lie
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
def test_for_whom_a_connection_counts(peer: str | None, forwarded: list[str], hops: int, address: str | None) -> None:
    """Behind proxies the client's own address, not the proxy's, and not one that the client made up."""
    assert client_address(peer, forwarded, hops) == address


@given(st.lists(st.text()), st.integers(0, 5), st.text() | st.none())
def test_any_header(forwarded: list[str], hops: int, peer: str | None) -> None:
    """A header is a stranger's text: it breaks nothing."""
    client_address(peer, forwarded, hops)


def test_seats_come_free_again() -> None:
    """Who closed a connection may open another; counts of those who left take no memory."""
    connection_limits = ConnectionLimits(per_user=2, per_address=3)
    taken = []
    for number in range(3):
        seat = connection_limits.take("203.0.113.7")
        seat.check_address()
        if number < 2:
            seat.sit("user_1")
        taken.append(seat)
    with pytest.raises(Disconnect, match="user_1") as full:
        taken[2].sit("user_1")
    assert full.value.close is CloseCode.TOO_MANY
    with pytest.raises(Disconnect, match=r"203\.0\.113\.7") as crowded:
        connection_limits.take("203.0.113.7").check_address()
    assert crowded.value.close is CloseCode.TOO_MANY
    assert connection_limits.addresses == {"203.0.113.7": 4}
    taken[0].sit("user_1")  # the same again, as an `auth` does
    taken[0].sit("user_2")
    assert connection_limits.users == {"user_1": 2, "user_2": 1}
    for seat in taken:
        seat.leave()
        seat.leave()
    assert not connection_limits.users
    assert connection_limits.addresses == {"203.0.113.7": 1}


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
    """A page of somebody else can't use its visitor's browser to open sockets here."""
    assert allowed_origin(origin, host, allowed) is may
