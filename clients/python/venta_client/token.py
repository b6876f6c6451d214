"""Reads the expiry of a client's token. Pure. Only the server verifies tokens."""

from __future__ import annotations

import base64
import json

EARLY = 60.0
LEAST_WAIT = 1.0
EXPIRED_WAIT = 30.0


def expiry(token: str) -> float | None:
    """Returns when a JWT expires, epoch seconds; None if it has no expiry or is not a JWT."""
    try:
        claims = token.split(".")[1]
        decoded = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        ends = decoded["exp"]
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return float(ends) if type(ends) in (int, float) else None


def renew_in(token: str, now: float) -> float | None:
    """Returns the seconds from `now` (epoch seconds) until a token that the server accepts is replaced; None if never.

    One that seems to have expired shows a wrong clock, and is not replaced each second.
    """
    ends = expiry(token)
    if ends is None:
        return None
    left = ends - now
    if left <= 0:
        return EXPIRED_WAIT
    return max(left - EARLY, left * 0.7, LEAST_WAIT)
