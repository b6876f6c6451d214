"""What a run's figures are, and when it fails: nothing that can't be believed passes."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.reports.verdict import judge, per_customer, uneven

GOOD: dict[str, Any] = {
    "settings": {"late_ms": 100, "thresholds": {"ack_p99_ms": 100.0}},
    "seconds": 4.0,
    "warmup": 1,
    "verified": True,
    "failures": [],
    "measured": {
        **{"due": 1200, "sent": 1200, "acked": 1200, "positions": 5000, "frames": 90, "snapshots": 3},
        **{"update_bytes": 9000, "backlog": 0},
    },
    "totals": {
        **{"due": 1500, "sent": 1500, "acked": 1500, "unanswered": 0, "dropped": 0, "refused": 0},
        **{"rejected": {}, "errors": {}, "closes": {}, "gave_up": {}},
    },
    "delays": {
        "ack": {"count": 1200, "p50_ms": 20.0, "p90_ms": 20.0, "p99_ms": 20.0, "p999_ms": None, "max_ms": 21.0},
        "freshness": {"count": 900, "p50_ms": 0.0, "p99_ms": 90.0, "max_ms": 140.0},
        "late": {"count": 1200, "p99_ms": 1.0},
    },
    "customers": {
        **{"timed": 0, "p50_p99_ms": None, "slowest": []},
        "stalest": [
            {
                **{"customer": "customer 3", "vendor": "v7", "gap_ms": 1900.0, "at": 1_732_467_601_900.0},
                **{"shown": 1_732_467_599_000, "due": 1_732_467_600_000},
            }
        ],
    },
    "incidents": ["17:00:00.000 customer 4: the connection ended with 1006: "],
    "server": {
        **{"source": "processes", "seconds": 4.0, "resident_mb": {"all": 100.0}, "kb_per_connection": 20.0},
        "cpu": {"all": 2.0, "server": 1.0},
    },
    "generator": {"cpu": {"vendors": 0.4}, "coordinator_cpu": 0.1},
    "checks": {"stored": {"ok": True, "differences": 0, "shown": [], "compared": 1500}},
}


def judged(**changed: Any) -> dict[str, Any]:
    """A good run's report, with changes; those of `totals` and `delays` are merged."""
    merged = {name: GOOD[name] | changed.pop(name, {}) for name in ("totals", "delays", "settings")}
    return judge(GOOD | merged | changed)


def test_a_good_run_passes() -> None:
    """Its figures are rates over the measured time, its own cost among them."""
    report = judged()
    assert report["ok"], report["reasons"]
    assert report["reasons"] == []
    assert report["figures"]["pings_per_s"] == 300
    assert report["figures"]["own_us_per_ping"] == pytest.approx(333.333)
    assert report["figures"]["server_us_per_ping"] == pytest.approx(1666.667)
    assert report["figures"]["server_alone_us_per_ping"] == pytest.approx(833.333)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"delays": {"late": {"count": 9, "p99_ms": 250.0}}}, "itself was too slow: 250 ms late"),
        ({"delays": {"lag": {"count": 9, "p99_ms": 101.0}}}, "with reading frames"),
        ({"delays": {"ack": {"count": 900, "p99_ms": 100.5}}}, "threshold ack_p99_ms <= 100 was not kept: 100.5"),
        ({"delays": {"ack": {"count": 18, "p99_ms": None}}}, "too few samples (18; p99 needs 500)"),
        ({"delays": {"ack": {"count": 0}}}, "threshold ack_p99_ms <= 100 was not kept: it was not measured"),
        (
            {"delays": {"freshness": {"count": 9, "max_ms": 1900.0}}},
            "threshold freshness_max_ms <= 1500 was not kept: 1900; at 17:00:01.900 customer 3 saw vendor v7 as of"
            " 16:59:59.000; expected 17:00:00.000 or later, 1900 ms before",
        ),
        ({"settings": {"thresholds": {"watch_p98_ms": 5}}}, "there is no such figure"),
        ({"settings": {"thresholds": {"acks_per_s": ">= 1000"}}}, "threshold acks_per_s >= 1000 was not kept: 300"),
        ({"totals": {"unanswered": 1}}, "threshold unacked <= 0 was not kept: 1"),
        ({"totals": {"dropped": 2}}, "threshold unacked <= 0 was not kept: 2"),
        ({"totals": {"closes": {"1006": 2}}}, "threshold errors <= 0 was not kept: 2; 17:00:00.000 customer 4: the"),
        ({"totals": {"refused": 2}}, "threshold refused <= 0 was not kept: 2"),
        ({"totals": {"rejected": {"ERR_TIMESTAMP_IN_FUTURE": 2}}}, "threshold rejected <= 0 was not kept: 2"),
        ({"checks": {"stored": {"ok": False, "differences": 3, "shown": ["x"]}}}, "lost <= 0 was not kept: 3"),
        ({"checks": {}}, "what is stored was not compared with the database"),
        ({"checks": {"views": {"ok": False, "differences": 1, "shown": ["v1 is not shown"]}}}, "v1 is not shown"),
        ({"totals": {"sent": 400}}, "only 400 of 1500 pings"),
        ({"totals": {"gave_up": {"4401": 3}}}, "4401"),
        ({"totals": {"acked": 0}}, "not one ping was acked"),
        ({"totals": {"due": 0, "sent": 0, "acked": 0}}, "not one ping was due"),
        ({"seconds": 0.0}, "nothing was measured"),
        ({"failures": ["worker 0 of the vendors failed: x"]}, "worker 0"),
    ],
)
def test_what_can_not_be_believed_fails(changed: dict[str, Any], said: str) -> None:
    """A load generator that was too slow itself, a threshold that was not kept, a wrong view: each has its reason."""
    report = judged(**changed)
    assert not report["ok"]
    assert said in "\n".join(report["reasons"])


def test_a_run_without_verification_says_so_and_can_not_require_it() -> None:
    """Without the database nobody knows whether a ping is lost: a run may do without, but not claim it."""
    report = judged(verified=False, checks={})
    assert report["ok"], report["reasons"]
    assert "what is stored and shown was not verified" in report["notes"]
    demanded = judged(verified=False, checks={}, settings={"thresholds": {"lost": 0}})
    assert not demanded["ok"]


def test_costs_of_too_few_are_left_out() -> None:
    """12,503 µs per ping from 4 pings is what the server costs when idle; and an idle server is named."""
    few = judged(measured=GOOD["measured"] | {"sent": 4})
    assert few["figures"]["server_us_per_ping"] is None
    assert any("4 are too few" in note for note in few["notes"])
    idle = judged(server=GOOD["server"] | {"cpu": {"all": 0.2}})
    assert any("nearly idle" in note for note in idle["notes"])


def customer(number: int, later: int, seconds: int = 9) -> dict[str, Any]:
    """One customer's summary."""
    return {
        "customer": number,
        "frames": 50,
        "p50_ms": 20 + later,
        "p90_ms": 40,
        "seconds": seconds,
        "later_ms": later,
        "mostly_later_ms": later // 2,
        "latest": {"delay": 170.0, "at": 1_732_467_600_170.0, "vendor": "v7", "timestamp": 1_732_467_600_000},
    }


def test_the_clients_with_the_longest_delay_are_named() -> None:
    """Percentiles over all positions hide one customer of a hundred."""
    summaries = [customer(number, 0) for number in range(99)] + [customer(99, 150)]
    (line,) = uneven(summaries)
    assert line.startswith("customer 99 saw positions 150 ms later")
    assert "such as that of vendor v7 as of 17:00:00.000, which came at 17:00:00.170; expected less than 100" in line
    assert uneven([customer(1, 150, seconds=3)]) == []
    found = per_customer(summaries, [])
    assert (found["timed"], found["slowest"][0]["customer"], found["p50_p99_ms"]) == (100, 99, 20)
