"""Which servers may be put under load: a typo in a URL must not take down a production server."""

from __future__ import annotations

import pytest

from loadtest import WrongUse
from loadtest.clients.target import Target, check_host, may_be_loaded
from loadtest.engine.database import Database


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.8.8.8", "::1", "10.1.2.3", "192.168.0.7", "172.16.0.1", "fe80::1%eth0", "fd00::1"]
)
def test_this_machine_and_private_networks_may_be_loaded(address: str) -> None:
    """Development and a lab's own network need no extra word."""
    assert may_be_loaded(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "2606:4700::1111"])
def test_public_addresses_need_their_owners_word(address: str) -> None:
    """The name must be repeated exactly; another host's name or a careless yes does not do."""
    with pytest.raises(WrongUse, match=f"--i-own {address}"):
        check_host(address, None)
    with pytest.raises(WrongUse):
        check_host(address, "other.example")
    check_host(address, address)


def test_the_database_is_guarded_too() -> None:
    """The load test writes rows into the database as well."""
    with pytest.raises(WrongUse, match=r"--i-own 8\.8\.8\.8"):
        Database("postgresql://u:p@8.8.8.8/venta")
    with pytest.raises(WrongUse, match=r"--i-own 8\.8\.8\.8"):
        Database("postgresql:///venta?host=8.8.8.8")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8080", Target("127.0.0.1", 8080, False)),
        ("ws://localhost", Target("localhost", 80, False)),
        ("https://[::1]/", Target("::1", 443, True)),
    ],
)
def test_urls_are_understood(url: str, target: Target) -> None:
    """WebSocket and HTTP URLs name the same server."""
    assert Target.parse(url) == target


def test_an_ipv6_host_header_has_brackets() -> None:
    """Without brackets the port can't be distinguished from the address."""
    assert Target("::1", 8080, False).authority == "[::1]:8080"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999", "postgres://x"]
)
def test_what_is_no_server_is_refused(url: str) -> None:
    """With the value and an example, not a traceback."""
    with pytest.raises(WrongUse):
        Target.parse(url)
