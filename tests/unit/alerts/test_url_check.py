"""Where webhooks may go, and where never."""

from __future__ import annotations

import pytest

from streamer.alerts.url_check import check_url, host_of, is_public
from streamer.errors import ProtocolError


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "nonsense"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """A user could otherwise have the server send requests into its own network: cloud metadata, databases, routers."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_taken(address: str) -> None:
    """A check that refuses too much makes alerts useless."""
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example.com/", "ftp://hooks.example.com/", "hooks.example.com", "https://", "https:///x", ""),
        *("https://localhost/", "https://intranet/", "https://db.internal/", "https://printer.local./", "https://a b/"),
        *("https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://[::1]/"),
        *("https://u@hooks.example.com/", "https://u:p@hooks.example.com/", "https://hooks.example.com:99999/"),
        *(
            "https://hooks.example.com:0/",
            "https://[::1/",
            "https://hooks.example.com/\n",
            "https://hööks.example.com/",
        ),
    ],
)
def test_urls_that_can_not_be_are_refused(url: str) -> None:
    """What a URL parser and a resolver understand differently is the way past a check."""
    with pytest.raises(ProtocolError, match="url can't be used"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com/a?b=c", "https://hooks.example.com:8443", "https://1.1.1.1/"]
)
def test_urls_of_public_hosts_are_taken(url: str) -> None:
    """The usual case."""
    check_url(url)


def test_a_development_host_is_let_in_by_name_and_port() -> None:
    """On a laptop the receiver is on the laptop; nothing else is let in with it."""
    check_url("http://localhost:9000/hook", ["localhost:9000"])
    check_url("http://receiver/hook", ["receiver"])
    with pytest.raises(ProtocolError):
        check_url("http://localhost:9001/hook", ["localhost:9000"])
    with pytest.raises(ProtocolError):
        check_url("ftp://localhost:9000/hook", ["localhost:9000"])


def test_the_host_is_that_of_the_url() -> None:
    """Otherwise two spellings of one host would get twice the requests at once."""
    assert host_of("https://Hooks.Example.com:8443/a") == "hooks.example.com:8443"
