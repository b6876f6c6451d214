"""What is made of reports: pages, sums of several machines, comparisons, and the search for the highest load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.reports.html import page
from loadtest.reports.several import merge
from tests.loadtest.conftest import report, validate


def test_a_report_matches_its_schema() -> None:
    """Whoever reads reports by machine reads the schema, not our source; and it must not accept just anything."""
    validate(report())
    validate(merge([report(part=1, parts=2), report(part=2, parts=2)]))
    wrong: list[dict[str, Any]] = [{"series": "none"}, {"schema": "other/1"}, {"totals": {}}]
    for broken in wrong:
        with pytest.raises(jsonschema_rs.ValidationError):
            validate(report() | broken)


def test_the_commands_read_reports_and_set_the_exit_status(tmp_path: Path) -> None:
    """Exit codes are what CI looks at: 0 and 1, and 2 for what is no report."""
    paths = {name: tmp_path / f"{name}.json" for name in ("one", "two", "slow", "none")}
    paths["one"].write_text(json.dumps(report(part=1, parts=2)))
    paths["two"].write_text(json.dumps(report(part=2, parts=2)))
    paths["slow"].write_text(json.dumps(report(0.2)))
    paths["none"].write_text("{}")

    def run(*arguments: Any) -> tuple[int, str]:
        result = CliRunner(env={"TERMINAL_WIDTH": "300", "COLUMNS": "300"}).invoke(app, [str(one) for one in arguments])
        return result.exit_code, result.output

    assert run("compare", paths["one"], paths["two"])[0] == 0
    code, output = run("compare", paths["one"], paths["slow"])
    assert code == 1
    assert "Error: watch_p99_ms got worse" in output
    assert run("compare", paths["one"], paths["none"])[0] == 2
    code, output = run("merge", paths["one"], paths["two"], "--out", tmp_path / "all")
    assert code == 0, output
    assert "<svg" in (tmp_path / "all.html").read_text()
    validate(json.loads((tmp_path / "all.json").read_text()))
    assert run("report", paths["slow"])[0] == 0
    assert "<svg" in (tmp_path / "slow.html").read_text()
    assert run("compare", paths["one"], paths["two"], "--out", tmp_path / "both.html")[0] == 0
    assert "<svg" in (tmp_path / "both.html").read_text()


def test_a_page_is_complete_and_needs_no_network() -> None:
    """It is sent by mail and opened on a phone: nothing from elsewhere, nothing unescaped, reasons on top."""
    bad = report(0.3, watch_p99_ms=100)
    bad["settings"]["title"] = "Lunch <script>alert(1)</script>"
    text = page(bad)
    assert "customer 3 saw vendor v7 as of 17:00:00.000; expected 17:00:01.000 or later, 900 ms before" in text
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", text)
    assert "<script>alert" not in text
    assert "threshold watch_p99_ms" in text
    assert text.count("<svg") >= 7
    assert 'name="viewport"' in text
    assert "prefers-color-scheme:dark" in text.replace(" ", "")
    assert all(name in text for name in ("Ping → watcher", "CPU", "Latency by percentile", "The load generator itself"))
