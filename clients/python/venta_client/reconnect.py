"""When an app whose connection ended comes back. Pure: the spread (0 to 1) is passed in."""

from __future__ import annotations

FIRST_DELAY = 0.25
LONGEST_DELAY = 10.0
NEVER = frozenset({1002, 1003, 1007, 1009, 4400, 4403, 4404})
UNAUTHORIZED = 4401
TOO_MANY = 4429
LATER = 5.0
TOKENS_TRIED = 3

# an app treats a refused handshake as it would the close code of the same meaning
OF_STATUS = {400: 4400, 401: UNAUTHORIZED, 403: 4403, 404: 4404, 426: 4400, 429: 4429}


def delay(
    code: int,
    attempt: int,
    bye_ms: int | None,
    spread: float,
    longest: float = LONGEST_DELAY,
    *,
    retry_after_ms: int = 0,
) -> float | None:
    """Seconds until the next try after `attempt` fruitless ones, or None: do not come back.

    A server that says goodbye (`bye_ms`) spreads its clients itself; otherwise the wait doubles up to `longest`
    and is spread by half, on top of what the server asked for, at least 5 s where it has too many of us (4429).
    """
    if code in NEVER or (code == UNAUTHORIZED and attempt >= TOKENS_TRIED):
        return None
    if bye_ms is not None:
        return bye_ms / 1000
    # the exponent is bounded: 2**attempt of a long outage would not fit a float
    wait = min(longest, FIRST_DELAY * 2.0 ** min(attempt, 16)) * (0.5 + spread / 2)
    return wait + max(retry_after_ms / 1000, LATER if code == TOO_MANY else 0.0)


def code_of_status(status: int) -> int:
    """The close code that means the same as an HTTP status."""
    return OF_STATUS.get(status, 1012)
