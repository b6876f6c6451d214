"""The server under test, the check that it may be load-tested, and tokens."""

from __future__ import annotations

import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import jwt
import orjson

from loadtest import WrongUse

PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
LIFETIME = 3600
MIN_SECRET = 32


@dataclass(frozen=True, slots=True)
class Target:
    """The address of the server under test."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, url: str, own: str | None = None) -> Target:
        """Returns the target of an http(s) or ws(s) URL; raises WrongUse if it may not be load-tested."""
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
    def url(self) -> str:
        """The beginning of its URLs, up to the path."""
        return f"{'https' if self.tls else 'http'}://{self.authority}"

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


class Identity(NamedTuple):
    """One vendor and the `users.clerkId` that owns it."""

    vendor_id: str
    clerk_id: str
    name: str


def parse_vendors(lines: Iterable[str], source: str) -> list[Identity]:
    """Returns identities from JSON lines {"vendorId","clerkId","name"}; lines that are no objects are skipped."""
    found = []
    for count, line in enumerate(lines, 1):
        if not line.lstrip().startswith("{"):
            continue
        try:
            row = orjson.loads(line)
            found.append(Identity(str(row["vendorId"]), str(row["clerkId"]), str(row.get("name", ""))))
        except (orjson.JSONDecodeError, KeyError) as bad:
            raise WrongUse(
                f'{source} line {count} is {line.strip()[:120]!r} ({bad!r}); each is {{"vendorId","clerkId","name"}}'
            ) from None
    return found


def read_vendors(source: str) -> list[Identity]:
    """Returns identities from a file, or from standard input when `source` is `-`."""
    if source == "-":
        return parse_vendors(sys.stdin, "standard input")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as failed:
        raise WrongUse(f"the vendors can't be read: {failed}") from None
    return parse_vendors(text.splitlines(), source)


def enough(found: list[Identity], needed: int, source: str) -> list[Identity]:
    """Returns the first `needed` distinct vendors; raises WrongUse if there are fewer."""
    distinct = list({identity.vendor_id: identity for identity in found}.values())
    if len(distinct) < needed:
        raise WrongUse(f"{needed} vendors are needed, {source} has {len(distinct)}; add some or ask for fewer")
    return distinct[:needed]


def check_secret(secret: str) -> None:
    """Raises WrongUse for a secret that HS256 can't use."""
    if len(secret.encode()) < MIN_SECRET:
        raise WrongUse(
            f"the token secret has {len(secret.encode())} bytes, HS256 needs {MIN_SECRET}; "
            "give that of the server as STREAMER_JWT_SECRET or --secret"
        )


def mint(clerk_id: str, secret: str, now: float, lifetime: int = LIFETIME) -> str:
    """Returns an HS256 token for one user, valid for `lifetime` seconds from `now` (epoch seconds)."""
    return jwt.encode({"sub": clerk_id, "iat": int(now), "exp": int(now) + lifetime}, secret, algorithm="HS256")


def minting(identity: Identity, secret: str, lifetime: int = LIFETIME) -> Callable[[], str]:
    """Returns a function that gives an app a fresh token for each connection, valid for `lifetime` seconds."""
    return lambda: mint(identity.clerk_id, secret, time.time(), lifetime)
