"""When a webhook that failed is sent again. Pure; times are epoch milliseconds."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

PAUSES = (5, 20, 60, 300, 900, 1800, 3600, 7200, 14_400)
"""Seconds until the next attempt after each failed one; the last is repeated."""
JITTER = 0.2
"""Maximum random change of a pause, so that the events of an outage are not all repeated at once."""
GIVE_UP_AFTER = 86_400_000
"""Milliseconds after an event from which it is not sent again."""
GONE = 410
"""The status with which a receiver disables its alert."""


def next_attempt(created: int, attempts: int, now: int, chance: float, retry_after: str | None = None) -> int | None:
    """Returns when to try again, or None to give the event up.

    Args:
        created: when the event happened.
        attempts: how often it was sent, including the last time.
        chance: a random number from 0 to 1.
        retry_after: the receiver's `Retry-After` header, seconds or a date, respected if it is later.
    """
    pause = PAUSES[min(attempts, len(PAUSES)) - 1] * 1000
    at = now + round(pause * (1 + JITTER * (2 * chance - 1)))
    if retry_after is not None and (asked := wait_of(retry_after, now)) is not None:
        at = max(at, now + asked)
    last = created + GIVE_UP_AFTER
    if now >= last:
        return None
    return min(at, last)


def wait_of(header: str, now: int) -> int | None:
    """Returns the milliseconds that a Retry-After header asks for, at most a day; None if it can't be read."""
    header = header.strip()
    if header.isascii() and header.isdecimal():
        return min(int(header[:9]) * 1000, GIVE_UP_AFTER)
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):  # OverflowError: a year or zone with too many digits
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return min(max(0, round(date.timestamp() * 1000) - now), GIVE_UP_AFTER)
