"""Alerts under load while servers, PostgreSQL and Valkey are killed: every crossing still reaches the receiver."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.faults import Fault
from tests.chaos.stage import Stage
from tests.conftest import connected
from tests.support.apps import eventually
from tests.support.loadtest_run import load_run

FAULTS = (
    Fault(2.0, 0.5, "server 1", "kill"),
    Fault(7.0, 1.0, "postgresql", "kill"),
    Fault(12.0, 0.5, "valkey", "kill"),
    Fault(17.0, 0.5, "server 2", "kill"),
)
# Two crossings during an outage may both be missed. A stay of 12 s is longer than any fault here.
RUN = (
    *("alerts", "--vendors", "30", "--customers", "0", "--seed", "5", "--warmup", "1", "--set", "city.radius=1200"),
    *("--set", "vendors.movements=[{kind='driving', every=0.5}]", "--set", "alerts.count=40"),
    *("--set", "alerts.radius=[150, 400]", "--set", "alerts.stay_ms=12000", "--set", "alerts.late_ms=60000"),
    *("--set", "late_ms=60000", "--set", "settle=30", "--threshold", "errors=false", "--threshold", "refused=false"),
    *("--threshold", "freshness_max_ms=false", "--threshold", "alert_p99_ms=false"),
    *("--stage", "ramp:1:1", "--stage", "hold:30"),
)


async def test_each_crossing_is_reported_once_while_all_is_killed(tmp_path: Path) -> None:
    """Both servers, PostgreSQL and Valkey are killed: no webhook is missed, invented, changed or out of order, and
    every acked ping is stored once."""
    async with Stage(tmp_path) as stage:
        running = asyncio.create_task(load_run(stage.url, stage.postgres.url, *RUN, within=240))

        async def moving() -> bool:
            if running.done():
                raise AssertionError((await running)[2])
            async with connected(stage.postgres.url) as connection:
                return bool(await connection.fetchval("SELECT count(*) > 100 FROM locations"))

        await eventually(moving, "pings that are stored", within=60.0)
        await asyncio.gather(*map(stage.fail, FAULTS))
        code, report, said = await running
    assert code == 0, said
    check = report["checks"]["alerts"]
    assert check["compared"] > 50
    assert check["differences"] == 0
    assert report["checks"]["stored"]["rows"] >= report["totals"]["acked"] > 500
    assert stage.starts == 4, "each server was started again"
