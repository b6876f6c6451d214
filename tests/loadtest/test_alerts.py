"""The load test's check of alerts: each wrong webhook is found and named, and what may differ is not reported."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.engine.alert_auditor import INSIDE, AlertAuditor, side_of
from streamer.geo.shapes import Circle
from tests.conftest import Serve
from tests.loadtest.conftest import validate
from tests.support.loadtest_run import load_run

NOW = 1_796_000_000_000
CENTRE = (52.2297, 21.0122)
CIRCLE = Circle(*CENTRE, 500.0)
METRES = 111_195.0
FAR, NEAR, MARGIN, IN = 900.0, 560.0, 510.0, 100.0
"""Metres from the centre."""


class Story:
    """One alert and one vendor; times are seconds from the beginning."""

    def __init__(self, *, known_before: bool = False) -> None:
        self.auditor = AlertAuditor({"a": CIRCLE}, ["v", "w"], {"v"} if known_before else set(), 2500.0, 10_000.0)
        self._at: dict[int, float] = {}

    def pings(self, *places: tuple[int, float], timed: bool = True) -> Story:
        """The vendor is so far north of the centre at these times, each acked at once."""
        for second, metres in places:
            self._at[second] = metres
            stamp = NOW + 1000 * second
            self.auditor.acked([(0, stamp, CENTRE[0] + metres / METRES, CENTRE[1], timed)], stamp + 100)
        return self

    def told(self, second: int, kind: str, id: str = "", after: float = 0.2, **changed: Any) -> Story:
        """A webhook about the ping at a time, some seconds after it."""
        stamp = NOW + 1000 * second
        lat = CENTRE[0] + self._at.get(second, 0.0) / METRES
        card = {"vendorId": "v", "lat": lat, "long": CENTRE[1], "timestamp": stamp, **changed}
        event = {"type": f"vendor.{kind}", "alertId": "a", "vendor": card, "at": stamp + 10}
        self.auditor.take(id or f"{kind}{second}", event, stamp + 1000 * after)
        return self

    def check(self, end: int = 60) -> dict[str, Any]:
        return self.auditor.judge(NOW + 1000 * end)


def drive() -> Story:
    """From outside through the area and out again."""
    return Story().pings((0, FAR), (5, NEAR), (10, IN), (20, IN), (30, NEAR), (40, FAR))


def test_an_honest_server_is_accused_of_nothing() -> None:
    """Both events once, with their delays; a repetition of the same webhook is allowed, and counted."""
    story = drive().told(10, "entered").told(30, "left").told(30, "left", after=8)
    check = story.check()
    assert check["ok"], check
    assert (check["compared"], check["webhooks"], check["repeated"]) == (2, 2, 1)
    assert story.auditor.delays.summary()["max_ms"] == pytest.approx(200, rel=0.01)


@pytest.mark.parametrize(
    ("story", "kind", "said"),
    [
        (drive().told(10, "entered"), "missed", "was outside of alert a for 29.9 s; expected vendor.left"),
        (drive().told(30, "left"), "missed", "was inside of alert a for 20.0 s; expected vendor.entered"),
        (drive().told(10, "entered").told(10, "entered", "again").told(30, "left"), "doubled", "a new id, again"),
        (drive().told(10, "entered").told(30, "left", after=11), "late", "came 11.0 s after it was due"),
        (drive().told(5, "entered").told(30, "left"), "invented", "60 m beyond the edge"),
        (drive().told(10, "entered").told(20, "left").told(30, "left", "b"), "invented", "-400 m beyond the edge"),
        (drive().told(10, "entered").told(30, "left").told(30, "left", lat=52.9), "changed", "expected the same"),
        (drive().told(10, "entered").told(15, "left", lat=52.9).told(30, "left"), "invented", "as it was inside then"),
    ],
)
def test_each_wrong_webhook_is_found(story: Story, kind: str, said: str) -> None:
    """With the vendor, the time, and what was expected."""
    check = story.check()
    assert not check["ok"]
    assert check[kind] >= 1, check
    line = next(line for line in check["shown"] if line.startswith(f"{kind}: "))
    assert "vendor v" in line
    assert "alert a" in line
    assert said in line, line


def test_webhooks_of_a_vendor_that_come_in_another_order_are_found() -> None:
    """A receiver that keeps a list of who is inside would end with a wrong one."""
    check = drive().told(30, "left").told(10, "entered").check()
    assert check["disordered"] == 1


def test_a_short_visit_may_be_merged_and_a_long_one_may_not() -> None:
    """The server merges changes within a moment, for alerts as for watches."""
    assert Story().pings((0, FAR), (10, IN), (12, FAR)).told(0, "x").check()["missed"] == 0
    assert Story().pings((0, FAR), (10, IN), (13, FAR)).check()["missed"] == 2


def test_the_margin_may_be_either() -> None:
    """GPS scatters: a vendor leaves beyond 20 m only, and enters at the edge exactly."""
    story = Story().pings((0, FAR), (10, MARGIN), (20, MARGIN))
    assert story.check()["missed"] == 0
    assert story.told(20, "entered").check()["invented"] == 1
    story = Story().pings((0, IN), (10, MARGIN), (20, MARGIN), (30, NEAR)).told(0, "entered").told(30, "left")
    assert story.check()["ok"]


def test_what_is_not_known_is_not_judged() -> None:
    """An earlier run's vendor may be inside already; another machine's vendor is checked by that machine."""
    assert Story(known_before=True).pings((0, IN), (60, IN)).check(90)["missed"] == 0
    assert Story(known_before=True).pings((0, IN), (30, FAR), (60, FAR)).check(90)["missed"] == 1
    assert drive().told(10, "entered", vendorId="stranger").check()["invented"] == 0
    story = drive()
    story.auditor.forget(["v"])
    check = story.check()
    assert (check["missed"], check["shown"]) == (0, ["nothing was compared"])


def test_a_backlog_that_was_overtaken_accuses_nobody() -> None:
    """The newest goes first after a reconnect: what is older is history, if it had not been live before."""
    story = Story().pings((0, FAR), (30, FAR), (10, IN), (20, IN))
    assert story.check()["missed"] == 0
    check = story.told(10, "entered").told(30, "left").check()
    assert check["ok"], check


def test_a_request_that_is_signed_wrongly_fails_the_check() -> None:
    """Whoever can send one wrongly signed request could send anything."""
    story = drive().told(10, "entered").told(30, "left")
    story.auditor.refuse("it was not signed", NOW)
    assert story.check()["refused"] == 1


def test_the_edge_belongs_to_the_area() -> None:
    """`distance <= radius`, as in the protocol."""
    assert side_of(Circle(*CENTRE, 0.0), *CENTRE) == INSIDE


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


async def test_every_crossing_is_reported_once(serve: Serve, database_url: str) -> None:
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
