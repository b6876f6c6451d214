"""A report, as tests of several modules take one."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs

from loadtest.engine import scenario as scenarios
from loadtest.engine.run import MEASURED, SCHEMA, TOTALS
from loadtest.engine.verification import check
from loadtest.measure.recording import Recorder, Timeline, shown
from loadtest.reports.verdict import judge, per_customer
from tests.support.paths import ROOT

SCHEMA_FILE = ROOT / "loadtest/schema.json"


def recorded(delay: float, seconds: int = 12, pings: int = 50) -> Timeline:
    """Some seconds of one worker for vendors and one for customers."""
    record = Timeline(seconds, 2)
    for second in range(seconds):
        for kind in ("vendors", "customers"):
            recorder = Recorder()
            if kind == "vendors":
                recorder.counts.update(due=pings, sent=pings, acked=pings)
            else:
                recorder.counts.update(frames=10, positions=10 * pings, update_bytes=90 * pings)
            for number in range(pings):
                recorder.delay("ack" if kind == "vendors" else "watch", delay * (1 + number / pings))
            record.second(kind, 0, {"second": second, "active": 7, "cpu": 0.01, **recorder.take()})
        record.usage(second, {"server": second * 0.5, "all": second * 0.6}, {"server": 1e8, "all": 1.5e8})
    return record


STALE = {
    **{"customer": "customer 3", "vendor": "v7", "gap_ms": 900.0, "at": 1_732_467_601_900.0},
    **{"shown": 1_732_467_600_000, "due": 1_732_467_601_000},
}


def report(
    delay: float = 0.05, *, part: int = 1, parts: int = 1, seconds: int = 12, **thresholds: float
) -> dict[str, Any]:
    """A run's report as `loadtest run` would write it."""
    record = recorded(delay, seconds)
    scenario = scenarios.load("quiet-town", [("thresholds", {"errors": False, **thresholds})])
    counts = record.counts()
    return judge(
        {
            **{"schema": SCHEMA, "kind": "run", "scenario": "quiet-town", "settings": scenario.model_dump(mode="json")},
            **{"target": "127.0.0.1:8080", "trace": None, "started": "2026-01-01T12:00:00.000+00:00", "seed": 0},
            **{"part": part, "parts": parts, "machines": 1, "workers": 2, "planned_seconds": float(seconds)},
            **{
                "warmup": record.warmup,
                "seconds": record.seconds,
                "interval": record.interval,
                "interrupted": False,
                "failures": [],
            },
            "totals": {
                **dict.fromkeys(TOTALS, 0),
                **{"due": 600, "sent": 600, "acked": 600},
                **{"errors": {}, "closes": {"1012": 1}, "rejected": {}, "gave_up": {}},
            },
            "tags": {"branch": "main"},
            "environment": {"cpu": "a CPU", "cores": 2},
            "verified": True,
            "compared": {"vendors": 20, "vendors_of": 20, "customers": 5, "customers_of": 30},
            "customers": per_customer([], [STALE]),
            "incidents": [],
            "measured": {name: counts[name] for name in MEASURED},
            "delays": {name: shown(histogram) for name, histogram in record.delays().items()},
            "server": {
                **{"source": "processes", "seconds": 9.0, "cpu": {"all": 5.4}, "resident_mb": {"all": 150.0}},
                "kb_per_connection": 20.0,
            },
            "generator": {
                "cpu": {"vendors": 0.1, "customers": 0.1},
                **{"coordinator_cpu": 0.2, "clock_offset_ms": 0.0, "clock_error_ms": 0.0},
            },
            "checks": {
                "views": check([], compared=5) | {"watchers": 5, "cards": 60},
                "stored": check([], compared=600) | {"rows": 600},
            },
            "timeline": [{"t": 0, "seconds": 4, "kind": "ramp"}, {"t": 4, "seconds": seconds - 4, "kind": "hold"}],
            "series": record.series(),
        }
    )


def validate(found: dict[str, Any]) -> None:
    """Against the documented schema."""
    jsonschema_rs.validator_for(json.loads(SCHEMA_FILE.read_text())).validate(found)
