"""What is made of reports: pages, sums of several machines, comparisons, and the search for the highest load."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from typer.testing import CliRunner

from loadtest.benchmarks.find_max import Search, Wanted, find
from loadtest.cli.dashboard import Dashboard
from loadtest.cli.main import app
from loadtest.engine import scenario as scenarios
from loadtest.engine.run import MEASURED, SCHEMA, TOTALS
from loadtest.engine.scenario import Scenario
from loadtest.engine.stages import Course
from loadtest.engine.verification import check
from loadtest.errors import WrongUse
from loadtest.measure.recorder import Recorder
from loadtest.measure.timeline import Timeline, shown
from loadtest.reports.compare import compare
from loadtest.reports.html import page
from loadtest.reports.merge import merge
from loadtest.reports.outputs import as_csv, as_junit, as_prometheus, targets
from loadtest.reports.plot import Line, Plot, draw, nice
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
            "customers": per_customer([]),
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


def test_a_report_is_what_its_schema_says() -> None:
    """Whoever reads reports by machine reads the schema, not our source; and it must not accept just anything."""
    validate(report())
    validate(merge([report(part=1, parts=2), report(part=2, parts=2)]))
    wrong: list[dict[str, Any]] = [{"series": "none"}, {"schema": "other/1"}, {"totals": {}}]
    for broken in wrong:
        with pytest.raises(jsonschema_rs.ValidationError):
            validate(report() | broken)


def test_two_machines_are_one_run() -> None:
    """Counts add, and percentiles are those of all delays together, not an average of percentiles."""
    fast, slow = report(0.01, part=1, parts=2, watch_p99_ms=150), report(0.1, part=2, parts=2, watch_p99_ms=150)
    both = merge([fast, slow])
    assert both["machines"] == 2
    assert both["totals"]["sent"] == 1200
    assert both["totals"]["closes"] == {"1012": 2}
    assert both["delays"]["watch"]["count"] == 2 * fast["delays"]["watch"]["count"]
    assert both["delays"]["watch"]["p50_ms"] < 30
    assert both["delays"]["watch"]["p99_ms"] == pytest.approx(slow["delays"]["watch"]["p99_ms"], rel=0.02)
    assert both["series"][5]["counts"]["sent"] == 100
    assert both["series"][5]["vendors"] == 14
    assert both["figures"]["pings_per_s"] == 2 * fast["figures"]["pings_per_s"]
    assert fast["ok"]
    assert not both["ok"]
    assert any("watch_p99_ms" in reason for reason in both["reasons"])


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], "at least two"),
        ([report(part=1, parts=2)], "each may be there once"),
        ([report(part=2, parts=3)], "its parts is 3"),
        ([report(part=2, parts=2) | {"started": "2026-01-01T12:00:09.000+00:00"}], "--start-at"),
        ([report(part=2, parts=2, lost=3)], "its settings is"),
        ([report(part=2, parts=2) | {"kind": "find-max"}], "only runs can be merged"),
    ],
)
def test_what_is_no_part_of_the_run_is_not_added(others: list[dict[str, Any]], said: str) -> None:
    """A sum of two different runs is a lie with decimals."""
    with pytest.raises(WrongUse) as raised:
        merge([report(part=1, parts=2), *others])
    assert said in str(raised.value)


def test_a_missing_part_is_told() -> None:
    """Two of three machines are not the whole load."""
    both = merge([report(part=1, parts=3), report(part=3, parts=3)])
    assert not both["ok"]
    assert "the parts [2] of 3 are missing" in both["reasons"]


def verdicts(before: dict[str, Any], after: dict[str, Any], tolerance: float = 0.05) -> dict[str, str]:
    """What `compare` says of each figure."""
    return {one["name"]: one["verdict"] for one in compare(before, after, tolerance)["changes"]}


def repeated(*delays: float) -> dict[str, Any]:
    """A report of several runs."""
    return report(delays[0]) | {"repeats": [report(delay)["figures"] for delay in delays]}


def test_worse_is_told_from_noise() -> None:
    """A CI run fails for a change that repeated runs do not explain, and for no other."""
    quiet, noisy = repeated(0.050, 0.051, 0.049), repeated(0.040, 0.075, 0.060)
    assert verdicts(quiet, repeated(0.080, 0.081, 0.079))["watch_p99_ms"] == "worse"
    assert verdicts(repeated(0.080, 0.081, 0.079), quiet)["watch_p99_ms"] == "better"
    assert verdicts(quiet, repeated(0.0502, 0.0512, 0.0492))["watch_p99_ms"] == "same"
    assert verdicts(noisy, repeated(0.090, 0.050, 0.070))["watch_p99_ms"] == "noise"
    assert verdicts(quiet, repeated(0.054, 0.055, 0.053), 0.2)["watch_p99_ms"] == "same"
    found = compare(quiet, repeated(0.080, 0.081, 0.079), 0.05)
    assert not found["ok"]
    assert found["runs"] == [3, 3]
    assert found["changes"][0]["noise"] > 0


def test_a_lost_ping_is_never_noise() -> None:
    """One is too many, whatever the tolerance."""
    after = report()
    after["figures"] |= {"lost": 1}
    assert verdicts(report(), after, 1.0)["lost"] == "worse"


def test_a_single_run_is_compared_by_what_it_tells_of_its_noise() -> None:
    """Its parts show how steady a figure was; of what they do not show nothing is claimed."""
    assert verdicts(report(0.05), report(0.08))["watch_p99_ms"] == "worse"
    before, after = report(), report()
    before["figures"] |= {"pan_p99_ms": 20.0}
    after["figures"] |= {"pan_p99_ms": 13.0}
    assert verdicts(before, after)["pan_p99_ms"] == "unknown"
    found = compare(before, after, 0.05)
    assert any("pan_p99_ms" in line and "--repeat 3" in line for line in found["advice"])
    after["figures"] |= {"pan_p99_ms": 20.4}
    assert verdicts(before, after)["pan_p99_ms"] == "small"


def test_different_things_are_not_compared() -> None:
    """And where the scenarios differ it is said."""
    with pytest.raises(WrongUse, match="say nothing"):
        compare(report(), report() | {"scenario": "festival"}, 0.05)
    with pytest.raises(WrongUse, match="find-max"):
        compare(report(), report() | {"kind": "find-max"}, 0.05)
    assert compare(report(), report(lost=1), 0.05)["different"] == ["thresholds.lost: None, then 1.0"]


def test_the_commands_take_reports_and_end_as_they_must(tmp_path: Path) -> None:
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
    assert [out.name for out in targets([Path("a"), Path("b.xml")], Path("c"))] == ["a.json", "a.html", "b.xml"]


def test_a_page_needs_no_network_and_tells_everything() -> None:
    """It is sent by mail and opened on a phone: nothing from elsewhere, nothing unescaped, reasons on top."""
    bad = report(0.3, watch_p99_ms=100)
    bad["settings"]["title"] = "Lunch <script>alert(1)</script>"
    text = page(bad)
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", text)
    assert "<script>alert" not in text
    assert "threshold watch_p99_ms" in text
    assert text.count("<svg") >= 7
    assert 'name="viewport"' in text
    assert "prefers-color-scheme:dark" in text.replace(" ", "")
    assert all(name in text for name in ("Ping → watcher", "CPU", "Latency by percentile", "The load generator itself"))


@given(st.lists(st.tuples(st.floats(0, 1e6), st.one_of(st.none(), st.floats(0, 1e9))), max_size=20), st.booleans())
def test_any_line_can_be_drawn(points: list[tuple[float, float | None]], dots: bool) -> None:
    """A run without a single delay, or with one that took a day, still has a page; nothing leaves the frame."""
    drawn = draw(Plot("a", [Line("b", sorted(points, key=lambda point: point[0]), dots=dots)], "s", "ms", limit=5.0))
    for x, y in re.findall(r"([\d.]+),([\d.]+)(?=[ \"])", "".join(re.findall(r'points="[^"]*"', drawn))):
        assert 40 <= float(x) <= 360
        assert 0 <= float(y) <= 210
    assert "nan" not in drawn
    assert (drawn == "") == all(value is None for _, value in points)


@given(st.floats(1e-6, 1e12))
def test_axes_have_round_numbers(highest: float) -> None:
    """Two to eight of them, and the last is not below the data."""
    ticks = nice(highest)
    assert 2 <= len(ticks) <= 8
    assert ticks[-1] >= highest * (1 - 1e-6)


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


@given(st.floats(0.01, 100), st.floats(0.05, 20))
def test_a_search_ends_close_to_the_limit(limit: float, first: float) -> None:
    """In a dozen steps, from far below or above."""
    search = Search(first, 1000.0, 30)
    while (scale := search.next()) is not None:
        search.tried(scale, scale <= limit)
    assert search.kept is not None
    assert search.kept <= limit
    assert search.broken is not None
    assert search.broken / search.kept <= 1.2


def found(keeps: Callable[[float], bool], **options: Any) -> dict[str, Any]:
    """What a search says of a server that keeps its thresholds so far."""
    tried: list[float] = []

    async def run(scenario: Scenario, scale: float) -> dict[str, Any]:
        tried.append(scale)
        one = report(0.05 if keeps(scale) else 0.5, watch_p99_ms=200)
        figures = one["figures"] | {"positions_per_s": 500 * scale}
        return one | {"settings": scenario.model_dump(mode="json"), "figures": figures}

    scenario = scenarios.load("quiet-town", [("thresholds.watch_p99_ms", 200)])
    wanted = Wanted(scenario, "quiet-town", **{"most": 9, "highest": 100.0, "seconds": 5.0} | options)
    return asyncio.run(find(wanted, run, lambda text: None, lambda: False)) | {"tried": tried}


def test_the_highest_load_is_found_with_its_knee(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the last load that kept the thresholds, the first that broke them, and where delay took off."""
    monkeypatch.setattr("loadtest.benchmarks.find_max.PAUSE", 0.0)
    result = found(lambda scale: scale <= 5)
    validate({name: value for name, value in result.items() if name != "tried"})
    assert result["ok"]
    assert 4 <= result["kept_scale"] <= 5 < result["broken_scale"] <= 5.8
    assert result["tried"].count(8.0) == 2  # a threshold that breaks is not believed at once
    assert result["tried"].count(result["tried"][-1]) == 2  # nor is one that was kept
    assert result["knee"]["scale"] == pytest.approx(result["kept_scale"], abs=0.01)
    assert result["figures"]["max_pings_per_s"] == result["best"]["figures"]["pings_per_s"]
    text = page(result)
    assert "against load" in text
    assert ">knee<" in text
    none = found(lambda scale: False, most=4)
    assert not none["ok"]
    assert none["best"] is None
    assert "<svg" in page(none)
    with pytest.raises(WrongUse, match="needs a threshold"):
        asyncio.run(find(Wanted(scenarios.load("quiet-town"), "x"), lambda *_: asyncio.sleep(0, {}), print, bool))


def test_a_load_that_kept_the_thresholds_only_once_is_not_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single lucky run is no capacity: the highest is run again, and the one below it is reported if it fails."""
    monkeypatch.setattr("loadtest.benchmarks.find_max.PAUSE", 0.0)
    seen: list[float] = []

    def keeps(scale: float) -> bool:
        seen.append(scale)
        return scale < 4 or (scale == 4 and seen.count(4) == 1)

    result = found(keeps, most=4)
    assert result["confirmed"]
    assert (result["kept_scale"], result["broken_scale"]) == (2.0, 4.0) or result["kept_scale"] < 4


def test_only_what_is_to_vary_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--vary customers` finds how many customers a fleet can have."""
    monkeypatch.setattr("loadtest.benchmarks.find_max.PAUSE", 0.0)
    result = found(lambda scale: scale < 3, vary="customers", most=3)
    assert {step["vendors"] for step in result["steps"]} == {20}
    assert [step["customers"] for step in result["steps"]] == [30, 60, 120, 60]
