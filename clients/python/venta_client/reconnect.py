"""The rules for reconnecting. Pure: `chance` (0 up to 1) is an argument. Times are in ms."""

from __future__ import annotations

from typing import Literal

MIN_DELAY = 1_000.0
MAX_DELAY = 30_000.0
UNAUTHORIZED = 4401
Rule = Literal["yes", "later", "token", "no"]
"""`later`: after a longer wait. `token`: only with another token. `no`: it would fail the same way."""

RULES: dict[int, Rule] = {1009: "no", 4400: "no", UNAUTHORIZED: "token", 4403: "no", 4404: "no", 4429: "later"}
# a refused handshake is handled as the equivalent close code
OF_STATUS = {400: 4400, 401: UNAUTHORIZED, 403: 4403, 404: 4404, 426: 4400, 429: 4429}


def rule(code: int) -> Rule:
    """Returns whether and how to reconnect after a close code."""
    return RULES.get(code, "yes")


def wait(
    code: int,
    failures: int,
    chance: float,
    *,
    min_delay: float = MIN_DELAY,
    max_delay: float = MAX_DELAY,
    reconnect_after: float | None = None,
    retry_after: float = 0.0,
) -> float:
    """Returns the wait before the next attempt: exponential backoff with full jitter.

    The bound doubles with each of the consecutive `failures` (from 1). The jitter spreads the clients of a lost server.
    `retry_after` (`retryAfterMs`) is added. `reconnect_after` (`reconnectAfterMs` of a `bye`) is used instead.
    """
    if reconnect_after is not None:
        return reconnect_after
    # limits the exponent: after a long outage 2**failures would not fit a float
    spread = chance * min(max_delay, min_delay * 2.0 ** min(failures - 1, 30))
    return spread + max(retry_after, 5 * min_delay if rule(code) == "later" else 0.0)


def code_of_status(status: int) -> int:
    """Returns the close code equivalent to an HTTP status."""
    return OF_STATUS.get(status, 1012)
