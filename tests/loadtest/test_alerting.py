"""A whole run with alerts against a real server; and one against a server that can't send to the receiver."""

from __future__ import annotations

from typing import Any

from tests.conftest import Serve
from tests.loadtest.conftest import validate
from tests.support.loadtest_run import load_run

TOWN = (
    *("alerts", "--vendors", "30", "--customers", "4", "--seed", "3", "--warmup", "1", "--set", "city.radius=900"),
    *("--set", "vendors.movements=[{kind='driving', every=0.25}]", "--set", "alerts.count=60"),
    *("--set", "alerts.radius=[100, 250]", "--set", "late_ms=60000", "--set", "alerts.late_ms=60000"),
    *("--threshold", "freshness_max_ms=false", "--threshold", "alert_p99_ms=false"),
    *("--stage", "ramp:1:1", "--stage", "hold:9"),
)
KEY = "a-key-for-alerts-a-key-for-alerts"


async def run(url: str, database_url: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, report and messages of one run."""
    return await load_run(url, database_url, *TOWN, *arguments, within=200)


async def test_every_crossing_is_told_once(serve: Serve, database_url: str) -> None:
    """Vendors cross edges all the time; each webhook is verified and held against where they were."""
    running = await serve(alert_key=KEY, alert_development_hosts=("127.0.0.1",))
    code, report, said = await run(running.url, database_url)
    assert code == 0, said
    validate(report)
    check = report["checks"]["alerts"]
    assert check["alerts"] == 60
    assert check["webhooks"] >= check["compared"] > 50
    assert report["delays"]["alert"]["count"] > 40
    assert report["figures"]["alert_max_ms"] > 0


async def test_a_server_that_refuses_alerts_is_named_before_the_run(serve: Serve, database_url: str) -> None:
    """With the settings that it needs."""
    running = await serve()
    code, _, said = await run(running.url, database_url)
    assert code == 1
    assert "STREAMER_ALERT_KEY" in said
