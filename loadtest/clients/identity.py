"""Which vendors the apps may speak for, and the tokens they do it with."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jwt
import orjson

from loadtest.errors import WrongUse

LIFETIME = 3600
MIN_SECRET = 32


class Identity(NamedTuple):
    """One vendor and the `users.clerkId` that owns it."""

    vendor_id: str
    clerk_id: str
    name: str


def parse(lines: Iterable[str], source: str) -> list[Identity]:
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


def read(source: str) -> list[Identity]:
    """Returns identities from a file, or from standard input when `source` is `-`."""
    if source == "-":
        return parse(sys.stdin, "standard input")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as failed:
        raise WrongUse(f"the vendors can't be read: {failed}") from None
    return parse(text.splitlines(), source)


def enough(found: list[Identity], needed: int, source: str) -> list[Identity]:
    """Returns the first `needed` distinct vendors; raises WrongUse when there are fewer."""
    distinct = list({identity.vendor_id: identity for identity in found}.values())
    if len(distinct) < needed:
        raise WrongUse(f"{needed} vendors are needed, {source} has {len(distinct)}; add some or ask for fewer")
    return distinct[:needed]


def check_secret(secret: str) -> None:
    """Raises WrongUse for a secret that HS256 can't use."""
    if len(secret.encode()) < MIN_SECRET:
        raise WrongUse(
            f"the token secret has {len(secret.encode())} bytes, HS256 needs {MIN_SECRET}; "
            "give the server's own as STREAMER_JWT_SECRET or --secret"
        )


def mint(clerk_id: str, secret: str, now: float, lifetime: int = LIFETIME) -> str:
    """Returns an HS256 token for one user, valid for `lifetime` seconds from `now` (epoch seconds)."""
    return jwt.encode({"sub": clerk_id, "iat": int(now), "exp": int(now) + lifetime}, secret, algorithm="HS256")


def minting(identity: Identity, secret: str, lifetime: int = LIFETIME) -> Callable[[], str]:
    """Returns a function that gives an app a fresh token for each connection, valid for `lifetime` seconds."""
    return lambda: mint(identity.clerk_id, secret, time.time(), lifetime)
