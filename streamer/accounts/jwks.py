"""A token issuer's public keys: fetched by URL, kept while it is away, fetched anew for a key not seen yet."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp
import jwt
import orjson
import structlog

from streamer.errors import Unavailable

log = structlog.get_logger()

ALGORITHMS = ("RS256", "ES256")
MOST_BYTES = 256 << 10
MOST_KEYS = 100
TIMEOUT = 5.0
"""Seconds for one fetch."""
LIFETIME = 300.0
"""Seconds between fetches: a key that the issuer withdraws is taken no longer than this."""
LEAST = 5.0
"""Seconds between fetches at least, whatever key ids strangers make up, also while the issuer is away."""


class IssuerKeys:
    """The keys of a JWKS by their `kid`; `run` fetches them. What was fetched last counts until the next is read."""

    def __init__(self, url: str, *, lifetime: float = LIFETIME, least: float = LEAST) -> None:
        self.fetches = 0
        self.cause: str | None = None
        """Why the last fetch failed; None when it did not."""
        self._url = url
        self._lifetime = lifetime
        self._least = least
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._tried: float | None = None
        self._wanted = asyncio.Event()
        self._fetched: asyncio.Future[None] | None = None

    async def key(self, kid: str | None) -> jwt.PyJWK | None:
        """The key of this id, or the only one there is for a token that names none; None: the issuer has no such key.

        May wait for a fetch. Unavailable when the key is not known and the issuer can't be asked.
        """
        found = self._known(kid)
        if found is None:
            await self._ask()
            found = self._known(kid)
            if found is None and self.cause is not None:
                told = "the token issuer's keys can't be read just now: try again"
                raise Unavailable(f"the token issuer's keys can't be read just now: {self.cause}; try again", told)
        return found

    async def run(self) -> None:
        """Fetch for ever: regularly, and soon when a token names a key that is not known."""
        # Redirects are not followed: what counts is what the operator set.
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT), trust_env=True) as session:
            while True:
                await self._fetch(session)
                self._tried = asyncio.get_running_loop().time()
                self._wanted.clear()
                if self._fetched is not None:
                    self._fetched.set_result(None)
                    self._fetched = None
                await asyncio.sleep(self._least)
                if self.cause is None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._lifetime - self._least):
                            await self._wanted.wait()

    def _known(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _ask(self) -> None:
        """Wait for the next fetch, unless the last one was just now."""
        loop = asyncio.get_running_loop()
        if self._tried is not None and loop.time() - self._tried < self._least:
            return
        self._wanted.set()
        if self._fetched is None:
            self._fetched = loop.create_future()
        await asyncio.wait({self._fetched}, timeout=TIMEOUT + self._least)
        if self._tried is None:
            message = "the token issuer's keys are not read yet; try again"
            raise Unavailable(message, message)

    async def _fetch(self, session: aiohttp.ClientSession) -> None:
        self.fetches += 1
        try:
            async with session.get(self._url, allow_redirects=False, headers={"Accept": "application/json"}) as answer:
                if answer.status != 200:
                    raise ValueError(f"it answers {answer.status}")
                body = bytearray()
                async for data in answer.content.iter_any():
                    body += data
                    if len(body) > MOST_BYTES:
                        raise ValueError(f"it answers with more than {MOST_BYTES} bytes")
            keys = usable(orjson.loads(body))
        except (aiohttp.ClientError, OSError, ValueError) as failed:
            cause = str(failed) or type(failed).__name__
            if self.cause != cause:
                log.warning("the token issuer's keys can't be read", url=self._url, cause=cause, known=len(self._keys))
            self.cause = cause
            return
        if self.cause is not None or keys.keys() != self._keys.keys():
            log.info("read the token issuer's keys", url=self._url, keys=list(keys))
        self.cause = None
        self._keys = keys


def usable(jwks: Any) -> dict[str | None, jwt.PyJWK]:
    """The keys of a JWKS that tokens may be signed with here, by `kid`; ValueError when there is none."""
    listed = jwks.get("keys") if type(jwks) is dict else None
    if type(listed) is not list:
        raise ValueError("what it answers is no JWKS")
    keys: dict[str | None, jwt.PyJWK] = {}
    for each in listed[:MOST_KEYS]:
        if type(each) is not dict or each.get("use") not in (None, "sig"):
            continue
        try:
            key = jwt.PyJWK(each)
            weak = key.Algorithm.check_key_length(key.key)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            continue
        kid = key.key_id
        if key.algorithm_name in ALGORITHMS and not weak and (kid is None or type(kid) is str):
            keys.setdefault(kid, key)
    if not keys:
        raise ValueError(f"its JWKS has no key for {' or '.join(ALGORITHMS)}")
    return keys
