"""What is made of the workers' seconds: nothing of the warm-up, nothing lost, and no flattering."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.measure.histogram import Histogram
from loadtest.measure.recorder import Tally
from loadtest.measure.timeline import Record, percentile
from loadtest.measure.usage import parse
from loadtest.reports.verdict import judge


def second(number: int, **counts: int) -> dict[str, Any]:
    """One worker's second with acks of 20 ms."""
    tally = Tally()
    tally.counts.update(counts)
    for _ in range(counts.get("acked", 0)):
        tally.delay("ack", 0.02)
    return {"second": number, "active": 5, "cpu": 0.1, **tally.take()}


def test_the_warm_up_is_in_no_figure() -> None:
    """Connecting thousands is not what a steady service is like."""
    record = Record(10, 4)
    for number in range(10):
        record.second("vendors", 0, second(number, acked=1000 if number < 4 else 10))
        record.usage(number, {"all": 2.0 * number}, {"all": 5e6})
    assert record.seconds == 6
    assert record.counts()["acked"] == 60
    assert len(record.delays()["ack"]) == 60
    assert record.own()["vendors"] == pytest.approx(0.6)
    used = record.used()
    assert used is not None
    assert used[1]["all"] / used[0] == pytest.approx(2.0)
    series = record.series()
    assert [entry["measured"] for entry in series] == [False] * 4 + [True] * 6
    assert series[5]["delays"]["ack"]["p50_ms"] == pytest.approx(20, rel=0.01)
    assert series[5]["server"]["cores"]["all"] == pytest.approx(2.0)


def test_a_long_run_has_a_bounded_series() -> None:
    """A report of six hours can be sent by mail."""
    record = Record(21_600, 100)
    for number in range(0, 21_600, 7):
        record.second("vendors", 0, second(number, acked=1))
    series = record.series()
    assert len(series) == 300
    assert sum(entry["counts"]["acked"] for entry in series) == len(range(0, 21_600, 7))
    assert record.warmup % record.interval == 0


def test_what_comes_after_the_end_is_counted_in_the_end() -> None:
    """A worker that is late with its last second loses nothing."""
    record = Record(3, 0)
    for number in (0, 1, 2, 3):
        record.second("vendors", 0, second(number, acked=1))
    assert record.counts()["acked"] == 4
    assert record.seconds == 3


def test_delays_keep_their_size_through_all_stages() -> None:
    """Steps, HDR histogram, base64 and back: percentiles stay within the 3 digits promised."""
    tally, whole = Tally(), Histogram()
    for number in range(1, 2001):
        tally.delay("watch", number / 1000)
    tally.delay("watch", -0.5)
    assert tally.counts["skewed"] == 1
    steps, counts = tally.take()["delays"]["watch"]
    assert percentile(dict(zip(steps, counts, strict=True)), 50) == pytest.approx(1000, rel=0.001)
    half = Histogram()
    half.record_steps(steps, counts, 10_000)
    whole.add(half.encode())
    whole.add(half.encode())
    whole.add("")
    assert len(whole) == 4002
    assert whole.summary()["p99_ms"] == pytest.approx(1980, rel=0.002)
    assert whole.curve([50, 100]) == pytest.approx([1000, 2000], rel=0.002)
    with pytest.raises(ValueError, match="no histogram"):
        whole.add("nonsense")


def test_metrics_of_several_workers_add_up() -> None:
    """CPU and memory as any Prometheus client library names them; a page without them is no zero."""
    text = (
        "# TYPE process_cpu_seconds_total counter\n"
        'process_cpu_seconds_total{worker="1"} 1.5\nprocess_cpu_seconds_total{worker="2"} 2.5e0\n'
        "process_resident_memory_bytes 1e8\nother_total 7\n"
    )
    assert parse(text) == ({"server": 4.0, "all": 4.0}, {"server": 1e8, "all": 1e8})
    assert parse("other_total 7\n") is None
    assert parse("process_cpu_seconds_total x\n") is None


def judged(**changed: Any) -> dict[str, Any]:
    """A good run's report, with changes."""
    record = Record(5, 1)
    for number in range(5):
        record.second("vendors", 0, second(number, due=100, sent=100, acked=100))
    report: dict[str, Any] = {
        "settings": {"late_ms": 100, "promises": {"ack_p99_ms": 100.0, "lost": 0, "p99_ms": None}},
        "seconds": record.seconds,
        "interrupted": False,
        "failures": [],
        "measured": {
            name: record.counts()[name]
            for name in ("due", "sent", "acked", "positions", "frames", "snapshots", "update_bytes", "backlog")
        },
        "totals": {
            **{"due": 500, "sent": 500, "acked": 500, "unanswered": 0, "dropped": 0},
            **{"rejected": {}, "errors": {}, "closes": {}, "gave_up": {}},
        },
        "delays": {name: delays.summary() for name, delays in record.delays().items()},
        "server": None,
        "warmup": 1,
        "generator": {"cpu": {"vendors": 0.4}, "coordinator_cpu": 0.1},
        "checks": {},
    }
    report["totals"] |= changed.pop("totals", {})
    return judge(report | changed)


def test_a_good_run_is_ok() -> None:
    """Its figures are rates over the measured time, its own cost among them."""
    report = judged()
    assert report["ok"]
    assert report["reasons"] == []
    assert report["figures"]["pings_per_s"] == 100
    assert report["figures"]["own_us_per_ping"] == 1000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"delays": {"late": {"p99_ms": 250.0}, "ack": {"p99_ms": 20.0}}}, "itself was too slow: 250 ms late"),
        ({"delays": {"lag": {"p99_ms": 101.0}, "ack": {"p99_ms": 20.0}}}, "with reading frames"),
        ({"delays": {"ack": {"p99_ms": 100.5}}}, "the promise ack_p99_ms ≤ 100 was not kept: 100.5"),
        ({"delays": {}}, "the promise ack_p99_ms ≤ 100 was not kept: it was not measured"),
        ({"totals": {"unanswered": 1}}, "the promise lost ≤ 0 was not kept: 1"),
        ({"totals": {"dropped": 2}}, "the promise lost ≤ 0 was not kept: 2"),
        ({"checks": {"stored": {"ok": False, "differences": 3, "shown": ["x"]}}}, "not kept: 3"),
        ({"checks": {"views": {"ok": False, "differences": 1, "shown": ["v1 is not shown"]}}}, "v1 is not shown"),
        ({"totals": {"sent": 400}}, "only 400 of 500 pings"),
        ({"totals": {"gave_up": {"4401": 3}}}, "4401"),
        ({"totals": {"acked": 0}}, "not one ping was acked"),
        ({"totals": {"due": 0, "sent": 0, "acked": 0}}, "not one ping was due"),
        ({"seconds": 0.0}, "nothing was measured"),
        ({"failures": ["worker 0 of the vendors failed: x"]}, "worker 0"),
        ({"totals": {"rejected": {"ERR_TIMESTAMP_IN_FUTURE": 2}}}, "ERR_TIMESTAMP_IN_FUTURE"),
    ],
)
def test_what_can_not_be_believed_is_not_ok(changed: dict[str, Any], said: str) -> None:
    """A load generator that was too slow itself, a broken promise, a wrong view: exit code 1, with the reason."""
    report = judged(**changed)
    assert not report["ok"]
    assert any(said in reason for reason in report["reasons"]), report["reasons"]
