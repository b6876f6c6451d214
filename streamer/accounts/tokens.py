"""Tokens to users: who speaks, and until when."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jwt

from streamer.accounts.jwks import ALGORITHMS, IssuerKeys
from streamer.errors import ErrorCode, ProtocolError
from streamer.settings import Settings

MOST_TOKEN = 8 << 10
"""Bytes of a token: what fits in a header."""


class Identity(NamedTuple):
    """Who a token speaks for (`users.clerkId`), and when it ends, epoch seconds; None: never."""

    clerk_id: str
    expires: float | None


class Rules(NamedTuple):
    """What a token must say beside its signature; None and empty: anything. `leeway` is seconds.

    `audience` is one that must be in `aud`. `parties` are the values that `azp` may have; a token without it passes, as
    those of apps that have no origin do.
    """

    issuer: str | None = None
    audience: str | None = None
    parties: tuple[str, ...] = ()
    leeway: float = 5.0

    @property
    def claims(self) -> dict[str, str]:
        """What a token of our own must say to pass."""
        said = {"iss": self.issuer, "aud": self.audience}
        return {name: value for name, value in said.items() if value is not None}


class Authenticator:
    """Checks tokens: HS256 by shared secrets, the current one first, RS256 and ES256 by the issuer's keys.

    Who is in `deleted` (`users.clerkId`) is let in no more, however good the token.
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
        """The identity of a token; ProtocolError ERR_INVALID_TOKEN says why it is refused, never the token itself.

        With an issuer's keys this may wait some seconds for a new one; Unavailable when the issuer does not answer.
        """
        if not token.isascii():
            raise _refused("a JWT is ASCII")
        if len(token) > MOST_TOKEN:
            raise _refused(f"it has {len(token)} bytes, at most {MOST_TOKEN} are read")
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm == "HS256" and self._secrets:
                claims = self._signed_by_secret(token)
            elif algorithm in ALGORITHMS and self._keys is not None:
                claims = await self._signed_by_issuer(token, header.get("kid"), self._keys)
            else:
                raise ProtocolError(ErrorCode.INVALID_TOKEN, f"tokens signed with {algorithm!r:.40} are not taken here")
            self._check_party(claims)
            if not claims["sub"]:
                raise _refused("its sub is empty: it is nobody's")
            if claims["sub"] in self._deleted:
                raise _refused(f"user {claims['sub']!r:.80} was deleted")
            expires = claims.get("exp")
            return Identity(claims["sub"], None if expires is None else float(expires))
        except (jwt.PyJWTError, OverflowError) as bad:
            raise self._why(token, bad) from None

    def deleted(self, clerk_id: str) -> bool:
        """Whether this user is known to be deleted."""
        return clerk_id in self._deleted

    def _signed_by_secret(self, token: str) -> dict[str, Any]:
        for secret in self._secrets[:-1]:
            try:
                return self._decoded(token, secret, "HS256", ["sub"])
            except jwt.InvalidSignatureError:
                pass
        return self._decoded(token, self._secrets[-1], "HS256", ["sub"])

    async def _signed_by_issuer(self, token: str, kid: str | None, keys: IssuerKeys) -> dict[str, Any]:
        key = await keys.key(kid)
        if key is None:
            raise _refused("it names no key (kid)" if kid is None else f"the issuer has no key {kid!r:.60}")
        return self._decoded(token, key, key.algorithm_name, ["sub", "exp"])

    def _decoded(self, token: str, key: str | jwt.PyJWK, algorithm: str, require: list[str]) -> dict[str, Any]:
        rules = self._rules
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=rules.issuer,
            audience=rules.audience,
            leeway=rules.leeway,
            options={"require": require, "verify_aud": rules.audience is not None},
        )
        return claims

    def _check_party(self, claims: dict[str, Any]) -> None:
        party = claims.get("azp")
        if self._rules.parties and party is not None and party not in self._rules.parties:
            raise _refused(f"it was made for {party!r:.80} (azp), which is not among those taken here")

    def _why(self, token: str, bad: Exception) -> ProtocolError:
        """What is wrong with a token, for the app's developer; only of one whose signature is good its claims."""
        if isinstance(bad, jwt.InvalidSignatureError):
            return _refused("its signature does not fit its contents and the key")
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
    """What the settings ask of a token."""
    return Rules(settings.jwt_issuer, settings.jwt_audience, settings.jwt_parties, settings.jwt_leeway)


def _refused(why: str) -> ProtocolError:
    return ProtocolError(ErrorCode.INVALID_TOKEN, f"the token is not valid: {why}")


def _claim(token: str, name: str) -> Any:
    return jwt.decode(token, options={"verify_signature": False}).get(name)


def _moment(token: str, claim: str) -> str:
    try:
        return datetime.fromtimestamp(float(_claim(token, claim)), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, TypeError, OverflowError, OSError):
        return "at no time that there is"


def make_token(
    secret: str, clerk_id: str, ttl: float, now: float | None = None, claims: Mapping[str, str] | None = None
) -> str:
    """An HS256 token for development and load tests; `ttl` seconds; further claims where the server's rules ask."""
    issued = time.time() if now is None else now
    body = {"sub": clerk_id, "iat": int(issued), "exp": int(issued + ttl), **(claims or {})}
    return jwt.encode(body, secret, algorithm="HS256")
