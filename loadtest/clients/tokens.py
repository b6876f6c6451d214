"""Tokens as the issuer of a development server would make them: HS256, `sub` is `users.clerkId`."""

from __future__ import annotations

import jwt

from loadtest.errors import WrongUse

LIFETIME = 3600
MIN_SECRET = 32


def check_secret(secret: str) -> None:
    """WrongUse for a secret that HS256 can't use."""
    if len(secret.encode()) < MIN_SECRET:
        raise WrongUse(
            f"the token secret has {len(secret.encode())} bytes, HS256 needs {MIN_SECRET}; "
            "give the server's own as STREAMER_JWT_SECRET or --secret"
        )


def mint(clerk_id: str, secret: str, now: float, lifetime: int = LIFETIME) -> str:
    """A token for one user, good for `lifetime` seconds from `now` (epoch seconds)."""
    return jwt.encode({"sub": clerk_id, "iat": int(now), "exp": int(now) + lifetime}, secret, algorithm="HS256")
