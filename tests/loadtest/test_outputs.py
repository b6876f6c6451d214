"""Reports in the formats of other tools."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

from prometheus_client.parser import text_string_to_metric_families

from loadtest.reports.outputs import as_csv, as_junit, as_prometheus, targets
from tests.loadtest.conftest import report


def test_other_tools_read_the_report() -> None:
    """CSV with one row a second, Prometheus' text with the tags as labels, JUnit with one case a threshold."""
    good, bad = report(), report(0.3, watch_p99_ms=100)
    rows = list(csv.DictReader(as_csv(good).splitlines()))
    assert len(rows) == len(good["series"])
    assert float(rows[5]["watch_p50_ms"]) > 0
    families = {family.name: family for family in text_string_to_metric_families(as_prometheus(good))}
    (sample,) = families["venta_loadtest_pings_per_s"].samples
    assert (sample.labels, sample.value) == ({"scenario": "quiet-town", "branch": "main"}, 50.0)
    suite = ElementTree.fromstring(as_junit(bad))
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["watch_p99_ms <= 100"]
    assert suite.get("failures") == "1"
    assert len(suite) > 6
    outs = [Path(name) for name in ("a", "b.xml", "csv", "prometheus")]
    assert [out.name for out in targets(outs, Path("c.1"))] == ["a.json", "a.html", "b.xml", "c.1.csv", "c.1.prom"]
