"""Sign-in links: a code that signs in on the vendor page once, within minutes, in place of a pasted token.

A code is `vendorId~expires~nonce~signature`, signed with a key that is derived from the token secret. The server stores
nothing until it is used; then Redis keeps it until it has expired, so that it can't be used twice on any process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from streamer.accounts.dataloader import DataLoader
from streamer.accounts.tokens import make_token
from streamer.broker.redis_acl import PREFIX
from streamer.broker.redis_connections import Command
from streamer.errors import ErrorCode, ProtocolError, Unavailable

LIFETIME = 15 * 60
"""Seconds for which a link is valid."""
PAGE = "/vendor"


class SignIn(NamedTuple):
    """A used link: the vendor, and a token of its owner, which expires at `expires` (epoch seconds)."""

    vendor_id: str
    token: str
    expires: int


class Link(NamedTuple):
    """A sign-in link; `expires` is epoch seconds."""

    url: str
    expires: int


def make_link(secret: str, vendor_id: str, origin: str, now: float) -> Link:
    """Returns a link that signs a device in as a vendor."""
    expires = int(now) + LIFETIME
    content = f"{vendor_id}~{expires:x}~{secrets.token_urlsafe(6)}"
    return Link(f"{origin}{PAGE}#code={quote(f'{content}~{_signature(secret, content)}')}", expires)


class SignInLinks:
    """Exchanges the codes of links for tokens, each once across all processes."""

    def __init__(
        self,
        secrets: Sequence[str],
        run: Callable[[Sequence[Command]], Awaitable[list[Any]]],
        dataloader: DataLoader,
        life: float,
        claims: dict[str, str],
    ) -> None:
        self._secrets = tuple(secrets)
        self._run = run
        self._dataloader = dataloader
        self._life = life
        self._claims = claims

    def create(self, vendor_id: str, origin: str, now: float) -> Link:
        """Returns a link; ProtocolError where the server has no secret to sign with."""
        return make_link(self._secret(), vendor_id, origin, now)

    async def owner_of(self, vendor_id: str) -> str:
        """Returns the clerkId of a vendor's owner; ProtocolError where there is no such vendor."""
        row = await self._dataloader.vendor(vendor_id)
        if row is None:
            raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"there is no vendor {vendor_id!r:.80}")
        return row.clerk_id

    async def exchange(self, code: str, now: float) -> SignIn:
        """Uses a code up.

        Raises:
            ProtocolError: the code is not valid, has expired, was used, or its vendor was deleted.
            Unavailable: Redis can't be reached, so it is not known whether the code was used.
        """
        self._secret()
        content, _, signature = code.rpartition("~")
        good = any(hmac.compare_digest(_signature(one, content).encode(), signature.encode()) for one in self._secrets)
        parts = content.rsplit("~", 2)
        if not good or len(parts) != 3:
            raise ProtocolError(ErrorCode.INVALID_TOKEN, "this sign-in link is not valid: ask for a new one")
        vendor_id, expires = parts[0], int(parts[1], 16)
        if expires < now:
            raise ProtocolError(ErrorCode.INVALID_TOKEN, "this sign-in link has expired: ask for a new one")
        owner = await self.owner_of(vendor_id)
        key = f"{PREFIX}sign-in:{signature}".encode()
        (answer,) = await self._run([Command(key, ("SET", key, b"1", "NX", "EX", max(1, int(expires - now) + 60)))])
        if isinstance(answer, Exception):
            raise answer if isinstance(answer, Unavailable) else Unavailable(f"Redis refused SET: {answer}")
        if answer is None:
            raise ProtocolError(ErrorCode.INVALID_TOKEN, "this sign-in link was used already: ask for a new one")
        token = make_token(self._secrets[0], owner, self._life, now, self._claims)
        return SignIn(vendor_id, token, int(now + self._life))

    def _secret(self) -> str:
        if not self._secrets:
            raise ProtocolError(ErrorCode.FORBIDDEN, "sign-in links are off: set STREAMER_JWT_SECRET")
        return self._secrets[0]


def _signature(secret: str, content: str) -> str:
    key = hmac.digest(secret.encode(), b"sign-in link", hashlib.sha256)
    return urlsafe_b64encode(hmac.digest(key, content.encode(), hashlib.sha256)[:16]).decode().rstrip("=")
