"""What a client can read of its own token. Pure: the token is checked by the server alone."""

from __future__ import annotations

import base64
import json

EARLY = 60.0
LEAST_WAIT = 1.0


def expiry(token: str) -> float | None:
    """When a JWT ends, epoch seconds; None when it does not say, or is no JWT."""
    try:
        claims = token.split(".")[1]
        decoded = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        ends = decoded["exp"]
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return float(ends) if type(ends) in (int, float) else None


def renew_in(token: str, now: float) -> float | None:
    """Seconds from `now` (epoch seconds) until a token is to be replaced; None: never."""
    ends = expiry(token)
    if ends is None:
        return None
    left = ends - now
    return max(left - EARLY, left * 0.7, LEAST_WAIT)
