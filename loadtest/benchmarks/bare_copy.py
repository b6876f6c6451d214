"""What PostgreSQL itself takes: a COPY of rows into `locations`, and single-row commits, without the server."""

from __future__ import annotations

import time
from collections.abc import Sequence

from loadtest.clients.identity import Identity
from loadtest.clients.vendor import Ping
from loadtest.engine.database import Database, rows
from loadtest.measure.histogram import Histogram

COMMITS = 200
PAST = 590_000


async def measure(database: Database, vendors: Sequence[Identity], count: int) -> dict[str, float]:
    """Copies `count` rows in one transaction, commits 200 single ones, and returns the rate and the commit delays."""
    each = max(1, count // len(vendors))
    first = int(time.time() * 1000) - PAST
    pings = [
        (vendor.vendor_id, Ping(first + step, 52.2 + step * 1e-6, 21.0, 0))
        for vendor in vendors
        for step in range(each)
    ]
    ready = sorted(rows(pings))
    began = time.perf_counter()
    await database.copy(ready)
    rate = len(ready) / (time.perf_counter() - began)
    commits = Histogram()
    single = rows((vendors[0].vendor_id, Ping(first - 1 - step, 52.2, 21.0, 0)) for step in range(COMMITS))
    for row in single:
        start = time.perf_counter()
        await database.copy([row])
        commits.record(time.perf_counter() - start)
    p50, p99 = commits.curve([50, 99])
    return {"rows_per_s": round(rate), "commit_p50_ms": p50, "commit_p99_ms": p99}
