"""The server under test, and whether it may be put under load."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtest.errors import WrongUse

PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server listens."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, url: str, own: str | None = None) -> Target:
        """Returns the target that an http(s) or ws(s) URL names; raises WrongUse when it may not be put under load."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as bad:
            raise WrongUse(f"the port in {url!r} can't be used: {bad}") from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise WrongUse(f"{url!r} is not the URL of a server; give something like http://127.0.0.1:8080")
        check_host(parts.hostname, own)
        return cls(parts.hostname, port or PORTS[parts.scheme], parts.scheme in ("https", "wss"))

    @property
    def authority(self) -> str:
        """The host and port as in a `Host` header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether the server runs on this machine, by its address."""
        found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_loopback for one in found)


def check_host(host: str, own: str | None) -> None:
    """Raises WrongUse unless every address of `host` is loopback or private, or `own` repeats the host's name."""
    if own == host:
        return
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as failed:
        raise WrongUse(f"the host {host!r} has no address: {failed}; check its spelling") from None
    for address in sorted(addresses):
        if not may_be_loaded(address):
            raise WrongUse(
                f"{host} ({address}) is neither this machine nor a private network, and a load test can take a server "
                f"down; if it is yours, repeat its name: --i-own {host}"
            )


def may_be_loaded(address: str) -> bool:
    """Returns whether an IP address is this machine's own or of a private network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return ip.is_loopback or ip.is_private or ip.is_link_local
