"""When an app whose connection ended reconnects. Pure: `chance` (0 up to 1) is passed in. Times in ms."""

from __future__ import annotations

from typing import Literal

MIN_DELAY = 1_000.0
MAX_DELAY = 30_000.0
UNAUTHORIZED = 4401
Rule = Literal["yes", "later", "token", "no"]
"""`later`: not soon. `token`: only with another token. `no`: the cause would be the same."""

RULES: dict[int, Rule] = {1009: "no", 4400: "no", UNAUTHORIZED: "token", 4403: "no", 4404: "no", 4429: "later"}
# a refused handshake is treated as the close code of the same meaning
OF_STATUS = {400: 4400, 401: UNAUTHORIZED, 403: 4403, 404: 4404, 426: 4400, 429: 4429}


def rule(code: int) -> Rule:
    """Return whether to reconnect after a close code."""
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
    """Return the wait before the next attempt.

    A random part of a bound that doubles with each of the `failures` in a row (from 1), so that clients which lost the
    same server do not return at the same moment; on top of it what the server asked for (`retryAfterMs`). Its `bye`
    (`reconnectAfterMs`) decides alone.
    """
    if reconnect_after is not None:
        return reconnect_after
    # the exponent is bounded: 2**failures of a long outage would not fit a float
    spread = chance * min(max_delay, min_delay * 2.0 ** min(failures - 1, 30))
    return spread + max(retry_after, 5 * min_delay if rule(code) == "later" else 0.0)


def code_of_status(status: int) -> int:
    """Return the close code that means the same as an HTTP status."""
    return OF_STATUS.get(status, 1012)
