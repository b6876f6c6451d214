"""Public keys of a token issuer, from its JWKS URL."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import jwt
import orjson
import structlog

from streamer.errors import Unavailable
from streamer.single_flight import SingleFlight

log = structlog.get_logger()

ALGORITHMS = ("RS256", "ES256")
MAX_BYTES = 256 << 10
MAX_KEYS = 100
TIMEOUT = 5.0
"""Seconds for one fetch."""
REFRESH = 300.0
"""Seconds between two fetches. A key that the issuer withdraws is accepted for no longer than this."""
MIN_INTERVAL = 5.0
"""Minimum seconds between two fetches, so that invented key ids cannot flood the issuer."""


class IssuerKeys:
    """The keys of a JWKS by `kid`. `run` refreshes them; the last good set stays in use while the issuer is down."""

    def __init__(self, url: str, *, refresh: float = REFRESH, min_interval: float = MIN_INTERVAL) -> None:
        self.cause: str | None = None
        """Why the last fetch failed; None when it succeeded."""
        self._url = url
        self._refresh = refresh
        self._min_interval = min_interval
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._fetch = SingleFlight(self._fetch_once, "fetch JWKS")

    @property
    def missing(self) -> str | None:
        """Why there is no key yet; None from the first fetch that succeeded."""
        return None if self._keys else self.cause or "the token issuer's keys are not fetched yet"

    async def key(self, kid: str | None) -> jwt.PyJWK | None:
        """Returns the key with this id, or the only key for a token without `kid`; fetches the JWKS for an unknown id.

        Returns:
            None when the issuer has no such key.

        Raises:
            Unavailable: The key is unknown and the issuer cannot be reached.
        """
        found = self._known(kid)
        if found is None:
            now = asyncio.get_running_loop().time()
            if self._fetched_at is None or now - self._fetched_at >= self._min_interval:
                await self._fetch.result()
                found = self._known(kid)
            if found is None and self.cause is not None:
                public = "the token issuer's keys cannot be fetched; try again"
                raise Unavailable(f"the token issuer's keys cannot be fetched: {self.cause}; try again", public)
        return found

    async def run(self) -> None:
        """Refreshes the keys forever."""
        try:
            while True:
                await self._fetch.result()
                await asyncio.sleep(self._refresh if self.cause is None else self._min_interval)
        finally:
            await self._fetch.close()

    def _known(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _fetch_once(self) -> None:
        try:
            keys = usable_keys(orjson.loads(await self._read()))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = str(error) or type(error).__name__
            if self.cause != cause:
                log.warning("cannot fetch the issuer's JWKS", url=self._url, cause=cause, keys_in_use=len(self._keys))
            self.cause = cause
        else:
            if self.cause is not None or keys.keys() != self._keys.keys():
                log.info("fetched the issuer's JWKS", url=self._url, keys=list(keys))
            self.cause = None
            self._keys = keys
        self._fetched_at = asyncio.get_running_loop().time()

    async def _read(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        # No redirects: only the configured URL is trusted.
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(self._url, allow_redirects=False, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status != 200:
                raise ValueError(f"it answers {answer.status}")
            body = bytearray()
            async for data in answer.content.iter_any():
                body += data
                if len(body) > MAX_BYTES:
                    raise ValueError(f"it answers with more than {MAX_BYTES} bytes")
            return bytes(body)


def usable_keys(jwks: Any) -> dict[str | None, jwt.PyJWK]:
    """Returns the signing keys of a JWKS by `kid`; raises ValueError when there is none."""
    listed = jwks.get("keys") if type(jwks) is dict else None
    if type(listed) is not list:
        raise ValueError("the answer is no JWKS")
    keys: dict[str | None, jwt.PyJWK] = {}
    for each in listed[:MAX_KEYS]:
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
