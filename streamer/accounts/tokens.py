"""Token verification: which user a JWT stands for, and until when."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jwt

from streamer.accounts.jwks import ALGORITHMS, IssuerKeys
from streamer.errors import ErrorCode, ProtocolError
from streamer.settings import Settings

MAX_TOKEN = 8 << 10
"""Maximum bytes of a token: what fits into a header."""
LATEST_SECONDS = 10**11
"""A larger `exp` cannot be epoch seconds (it would be after the year 5000): it is milliseconds."""


class Identity(NamedTuple):
    """A token's user (`users.clerkId`) and expiry, epoch seconds."""

    clerk_id: str
    expires: float


class Rules(NamedTuple):
    """What a token must contain besides a good signature. None and empty accept anything; times are in seconds.

    `audience` must be in `aud`. `parties` are the accepted values of `azp`; a token without `azp` is accepted, because
    apps without an origin send none. `max_lifetime` bounds `exp - iat`, or the remaining time of a token without `iat`.
    """

    issuer: str | None = None
    audience: str | None = None
    parties: tuple[str, ...] = ()
    leeway: float = 5.0
    max_lifetime: float | None = None

    @property
    def claims(self) -> dict[str, str]:
        """Claims that our own tokens need to be accepted."""
        claims = {"iss": self.issuer, "aud": self.audience}
        return {name: value for name, value in claims.items() if value is not None}


class Authenticator:
    """Verifies tokens: HS256 with shared secrets, RS256 and ES256 with the issuer's keys.

    Tokens of users in `deleted` (`users.clerkId`) are refused.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        keys: IssuerKeys | None = None,
        rules: Rules | None = None,
        deleted: Container[str] = (),
    ) -> None:
        self._secrets = tuple(secrets)
        self._deleted = deleted
        self._keys = keys
        self._rules = rules or Rules()

    async def check(self, token: str) -> Identity:
        """Returns the identity of a token. May take seconds when the issuer's JWKS has to be fetched.

        Raises:
            ProtocolError: ERR_INVALID_TOKEN with the reason, never with the token itself.
            Unavailable: The issuer cannot be reached.
        """
        if not token.isascii():
            raise _refused("a JWT is ASCII")
        if len(token) > MAX_TOKEN:
            raise _refused(f"it has {len(token)} bytes; the limit is {MAX_TOKEN}")
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm == "HS256" and self._secrets:
                claims = self._signed_by_secret(token)
            elif algorithm in ALGORITHMS and self._keys is not None:
                claims = await self._signed_by_issuer(token, header.get("kid"), self._keys)
            else:
                raise ProtocolError(ErrorCode.INVALID_TOKEN, f"tokens signed with {algorithm!r:.40} are not accepted")
            self._check_claims(claims)
            return Identity(claims["sub"], float(claims["exp"]))
        except (jwt.PyJWTError, OverflowError) as bad:
            raise self._explained(token, bad) from None

    def deleted(self, clerk_id: str) -> bool:
        """Returns whether this user is known to be deleted."""
        return clerk_id in self._deleted

    def _signed_by_secret(self, token: str) -> dict[str, Any]:
        for secret in self._secrets[:-1]:
            try:
                return self._decoded(token, secret, "HS256")
            except jwt.InvalidSignatureError:
                pass
        return self._decoded(token, self._secrets[-1], "HS256")

    async def _signed_by_issuer(self, token: str, kid: str | None, keys: IssuerKeys) -> dict[str, Any]:
        key = await keys.key(kid)
        if key is None:
            raise _refused("it names no key (kid)" if kid is None else f"the issuer has no key {kid!r:.60}")
        return self._decoded(token, key, key.algorithm_name)

    def _decoded(self, token: str, key: str | jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        rules = self._rules
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=rules.issuer,
            audience=rules.audience,
            leeway=rules.leeway,
            options={"require": ["sub", "exp"], "verify_aud": rules.audience is not None},
        )
        return claims

    def _check_claims(self, claims: dict[str, Any]) -> None:
        rules, user, party = self._rules, claims["sub"], claims.get("azp")
        if not user:
            raise _refused("its sub is empty")
        if user in self._deleted:
            raise _refused(f"user {user!r:.80} was deleted")
        if rules.parties and party is not None and party not in rules.parties:
            raise _refused(f"its azp is {party!r:.80}, which is not an accepted party")
        expires = float(claims["exp"])
        if expires >= LATEST_SECONDS:
            raise _refused(f"its exp {claims['exp']!r:.40} is in milliseconds; exp is epoch seconds")
        if rules.max_lifetime is not None:
            lifetime = expires - float(claims.get("iat", time.time()))
            if lifetime > rules.max_lifetime + rules.leeway:
                raise _refused(
                    f"it lasts {lifetime:.0f} s; the limit is {rules.max_lifetime:.0f} s (STREAMER_JWT_MAX_LIFETIME)"
                )

    def _explained(self, token: str, bad: Exception) -> ProtocolError:
        """Returns the reason, for the app's developer; quotes claims only of a token with a valid signature."""
        if isinstance(bad, jwt.InvalidSignatureError):
            return _refused("its signature does not match")
        if isinstance(bad, jwt.ExpiredSignatureError):
            return _refused(f"it expired {_moment(token, 'exp')}: get a new one")
        if isinstance(bad, jwt.ImmatureSignatureError):
            claim = "nbf" if "nbf" in str(bad) else "iat"
            return _refused(f"it is not valid before {_moment(token, claim)} ({claim})")
        if isinstance(bad, jwt.InvalidIssuerError):
            return _refused(f"its issuer is {_claim(token, 'iss')!r:.80}, not {self._rules.issuer!r}")
        if isinstance(bad, jwt.InvalidAudienceError):
            return _refused(f"its audience is {_claim(token, 'aud')!r:.80}, not {self._rules.audience!r}")
        return _refused(f"{bad}")


def rules_of(settings: Settings) -> Rules:
    """Returns the token rules of the settings."""
    return Rules(
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_parties,
        settings.jwt_leeway,
        settings.jwt_max_lifetime,
    )


def make_token(
    secret: str, clerk_id: str, ttl: float, now: float | None = None, claims: Mapping[str, str] | None = None
) -> str:
    """Returns an HS256 token for development and load tests, valid for `ttl` seconds, with further `claims`."""
    issued = time.time() if now is None else now
    body = {"sub": clerk_id, "iat": int(issued), "exp": int(issued + ttl), **(claims or {})}
    return jwt.encode(body, secret, algorithm="HS256")


def _refused(why: str) -> ProtocolError:
    return ProtocolError(ErrorCode.INVALID_TOKEN, f"the token is not valid: {why}")


def _claim(token: str, name: str) -> Any:
    return jwt.decode(token, options={"verify_signature": False}).get(name)


def _moment(token: str, claim: str) -> str:
    try:
        return datetime.fromtimestamp(float(_claim(token, claim)), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, TypeError, OverflowError, OSError):
        return "at an impossible time"
