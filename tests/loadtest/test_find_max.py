"""The search for the highest load that keeps the thresholds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import WrongUse
from loadtest.engine import scenario as scenarios
from loadtest.engine.find_max import Search, find, step_scenario
from loadtest.engine.scenario import Scenario
from loadtest.options import SearchOptions
from loadtest.reports.html import page
from tests.loadtest.conftest import report, validate


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
    wanted = SearchOptions(**{"most": 9, "highest": 100.0, "seconds": 5.0} | options)
    searching = find(scenario, "quiet-town", wanted, run, lambda text: None, lambda: False)
    return asyncio.run(searching) | {"tried": tried}


def test_the_highest_load_is_found_with_its_knee(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the last load that kept the thresholds, the first that broke them, and where delay took off."""
    monkeypatch.setattr("loadtest.engine.find_max.PAUSE", 0.0)
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
    scenario = scenarios.load("quiet-town")
    with pytest.raises(WrongUse, match="needs a threshold"):
        asyncio.run(find(scenario, "x", SearchOptions(), lambda *_: asyncio.sleep(0, {}), print, bool))


def test_a_load_that_kept_the_thresholds_only_once_is_not_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single lucky run is no capacity: the highest is run again, and the one below it too when that fails."""
    monkeypatch.setattr("loadtest.engine.find_max.PAUSE", 0.0)
    seen: list[float] = []

    def keeps(scale: float) -> bool:
        seen.append(scale)
        return scale < 4 or (scale == 4 and seen.count(4) == 1)

    result = found(keeps, most=4)
    assert result["confirmed"]
    assert (result["kept_scale"], result["broken_scale"]) == (2.0, 4.0)
    assert seen == [1, 2, 4, 8, 8, 4, 2]
    assert "in a single run" not in result["said"]


def test_only_what_is_to_vary_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--vary customers` finds how many customers a fleet can have."""
    monkeypatch.setattr("loadtest.engine.find_max.PAUSE", 0.0)
    result = found(lambda scale: scale < 3, vary="customers", most=3)
    assert {step["vendors"] for step in result["steps"]} == {20}
    assert [step["customers"] for step in result["steps"]] == [30, 60, 120, 60]


def test_a_step_is_measured_only_when_its_level_is_reached() -> None:
    """A server admits 300 clients a second: with a steeper ramp it would be blamed for those that wait to connect."""
    step = step_scenario(scenarios.load("pings"), 4, "vendors", 5)
    assert step.vendors.count == 4000
    assert step.stages[0].seconds == 20
    assert step.warmup > 20
    crowd = step_scenario(scenarios.load("live"), 5, "both", 5)
    assert crowd.stages[0].seconds == (crowd.vendors.count + crowd.customers.count) / 200 == 10
