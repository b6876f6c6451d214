"""The dashboard of a running load test."""

from __future__ import annotations

import pytest
from rich.console import Console

from loadtest.engine import scenario as scenarios
from loadtest.engine.scenario import Course
from loadtest.reports.terminal import Dashboard
from tests.loadtest.conftest import recorded


def test_the_dashboard_shows_the_last_second(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal a picture; in a log file a line now and then, not one a second; nothing with --json."""
    record, course = recorded(0.05), Course(scenarios.load("quiet-town").stages)
    console = Console(width=100, record=True)
    console.print(Dashboard("Quiet town", quiet=True).picture(record, course, ""))
    text = console.export_text()
    assert all(part in text for part in ("Quiet town", "ping → watcher", "500", "server 0.60 cores", "late by"))
    with Dashboard("Quiet town", quiet=False) as dashboard:
        for _ in range(5):
            dashboard.show(record, course, "")
    said = capsys.readouterr().err
    assert said.count("pings/s") == 1
    with Dashboard("Quiet town", quiet=True) as dashboard:
        dashboard.show(record, course, "")
    assert capsys.readouterr().err == said[len(said) :]
