"""Tokens to users: who speaks, and until when."""

from __future__ import annotations

import time
from typing import NamedTuple

import jwt

from streamer.errors import ErrorCode, ProtocolError, SettingsError, Unavailable


class Identity(NamedTuple):
    """Who a token speaks for (`users.clerkId`), and when it ends, epoch seconds; None: never."""

    clerk_id: str
    expires: float | None


class Authenticator:
    """Checks tokens: HS256 by a shared secret, or the issuer's keys by its JWKS."""

    def __init__(self, secret: str | None, jwks_url: str | None, leeway: float = 5.0) -> None:
        self._secret = secret
        try:
            self._jwks = jwt.PyJWKClient(jwks_url, cache_keys=True, lifespan=300, timeout=5) if jwks_url else None
        except jwt.PyJWTError as bad:
            raise SettingsError(f"STREAMER_JWKS_URL can't be used: {bad}") from None
        self._leeway = leeway

    def check(self, token: str) -> Identity:
        """The identity of a token; ProtocolError ERR_INVALID_TOKEN says why it is refused, never the token itself.

        With a JWKS this may wait some seconds for the issuer; Unavailable when it does not answer.
        """
        if not token.isascii():
            raise ProtocolError(ErrorCode.INVALID_TOKEN, "the token is not valid: a JWT is ASCII")
        try:
            algorithm = jwt.get_unverified_header(token).get("alg")
            if algorithm == "HS256" and self._secret is not None:
                claims = jwt.decode(
                    token,
                    self._secret,
                    algorithms=["HS256"],
                    leeway=self._leeway,
                    options={"require": ["sub"], "verify_aud": False},
                )
            elif algorithm in ("RS256", "ES256") and self._jwks is not None:
                key = _issuers_key(self._jwks, token)
                claims = jwt.decode(
                    token,
                    key,
                    algorithms=["RS256", "ES256"],
                    leeway=self._leeway,
                    options={"require": ["sub", "exp"], "verify_aud": False},
                )
            else:
                raise ProtocolError(ErrorCode.INVALID_TOKEN, f"tokens signed with {algorithm!r:.40} are not taken here")
            expires = claims.get("exp")
            return Identity(claims["sub"], None if expires is None else float(expires))
        except (jwt.PyJWTError, OverflowError) as bad:
            raise ProtocolError(ErrorCode.INVALID_TOKEN, f"the token is not valid: {bad}") from None


def _issuers_key(jwks: jwt.PyJWKClient, token: str) -> jwt.PyJWK:
    try:
        return jwks.get_signing_key_from_jwt(token)
    except (jwt.PyJWKClientConnectionError, OSError, ValueError) as away:
        raise Unavailable(f"the token issuer's keys can't be read just now: {away}; try again") from None


def make_token(secret: str, clerk_id: str, ttl: float, now: float | None = None) -> str:
    """An HS256 token for development and load tests; `ttl` seconds."""
    issued = time.time() if now is None else now
    return jwt.encode({"sub": clerk_id, "iat": int(issued), "exp": int(issued + ttl)}, secret, algorithm="HS256")
