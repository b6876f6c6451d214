"""Scenarios: the built-in ones can be run, flags win, and a mistake is named before anything is put under load."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import WrongUse, options
from loadtest.behaviour import DRIVE, City, Driving, Parked, Walking
from loadtest.clients.vendor import GRID, on_grid
from loadtest.engine import scenario as scenarios
from loadtest.engine.population import pick
from loadtest.engine.scenario import Course, Levels, Stage


def test_every_scenario_that_comes_along_can_be_run() -> None:
    """An engineer's first command must not fail because of a built-in scenario."""
    assert len(scenarios.names()) >= 13
    for name in scenarios.names():
        found = scenarios.load(name)
        assert found.warmup < found.seconds <= 180
        assert {"lost", "errors"} <= {limit.name for limit in found.limits()}
        assert found.about.endswith((".", "?"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("city.densty", 3)], "city.densty"),
        ([("vendors.count", "many")], "vendors.count"),
        ([("stages.0.kind", "jump")], "'ramp', 'hold', 'spike' or 'storm'"),
        ([("stages.9.kind", "hold")], "--set stages.9.kind"),
        ([("stages", [{"kind": "ramp", "seconds": 9}])], "a ramp needs a level"),
        ([("stages", [{"kind": "hold", "seconds": 20_000}, {"kind": "hold", "seconds": 20_000}])], "21600 s"),
        ([("warmup", 600)], "nothing would be measured"),
        ([("vendors.count", 20_000), ("stages.0.to", 2)], "more than 25000"),
        ([("vendors.count", 25_000), ("vendors.movements", [{"kind": "driving", "every": 0.05}])], "pings a second"),
        ([("customers.radius", [900, 100])], "must not be larger"),
        ([("thresholds.lost", "few")], "the threshold lost is 'few'"),
    ],
)
def test_a_mistake_in_a_scenario_is_named(changes: list[tuple[str, object]], said: str) -> None:
    """Nobody reads the source to learn which of forty members is wrong, and nothing runs without bounds."""
    with pytest.raises(WrongUse) as raised:
        scenarios.load("quiet-town", changes)
    assert said in str(raised.value)


def test_a_scenario_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    """And a file that is no TOML says where it breaks."""
    with pytest.raises(WrongUse, match="quiet-town, reconnect-storm"):
        scenarios.load("lunch")
    (tmp_path / "mine.toml").write_text('title = "x')
    with pytest.raises(WrongUse, match="is not TOML"):
        scenarios.load(str(tmp_path / "mine.toml"))


def test_flags_win_over_the_file() -> None:
    """Any member can be changed without writing a file."""
    changes = options.assignments(["city.density=80", 'title="A day"', "vendors.movements.0.kind=walking"])
    changes.append(("stages", options.stages(["ramp:5:1", "hold:2.5", "spike:3:2", "storm:4:0.5"])))
    found = scenarios.load("quiet-town", [*changes, ("warmup", 2)])
    assert (found.city.density, found.title, found.vendors.movements[0].kind) == (80, "A day", "walking")
    assert [stage.kind for stage in found.stages] == ["ramp", "hold", "spike", "storm"]
    assert found.stages[3].share == 0.5
    for wrong in (["ramp:x:1"], ["ramp"], ["hold:"]):
        with pytest.raises(WrongUse, match="KIND:SECONDS"):
            options.stages(wrong)
    with pytest.raises(WrongUse, match="NAME=VALUE"):
        options.assignments(["city.density"])


def test_thresholds_are_of_every_scenario_unless_it_says_otherwise() -> None:
    """By default a run fails that loses a ping or has connections closed; a flag changes or removes a threshold."""
    assert {"lost <= 0", "errors <= 0", "unacked <= 0"} <= {str(one) for one in scenarios.load("quiet-town").limits()}
    changes = options.thresholds(["watch_p99_ms<=200", "acks_per_s >= 1000", "errors=false", "lost=3"])
    found = scenarios.load("quiet-town", [(f"thresholds.{name}", limit) for name, limit in changes])
    limits = {one.name: one for one in found.limits()}
    assert "errors" not in limits
    assert (limits["watch_p99_ms"].keeps(200), limits["watch_p99_ms"].keeps(200.1)) == (True, False)
    assert (limits["acks_per_s"].keeps(1000), limits["acks_per_s"].keeps(999)) == (True, False)
    assert limits["lost"].keeps(3)
    with pytest.raises(WrongUse, match="watch_p99_ms<=200"):
        options.thresholds(["fast"])


def test_a_larger_town_is_as_dense() -> None:
    """Twice as many vendors must not mean that everybody sees twice as many: that would be another scenario."""
    town = scenarios.load("lunch-rush")
    double = town.scaled(4)
    assert (double.vendors.count, double.customers.count) == (1600, 2400)
    assert double.city.size(1600) == pytest.approx(2 * town.city.size(400))
    assert town.scaled(0.0001).vendors.count == 1


def test_levels_follow_the_stages() -> None:
    """A ramp is even, a spike ends, a storm keeps the level, vendors and customers may differ."""
    course = Course(
        [
            Stage(kind="ramp", seconds=10, to=1),
            Stage(kind="hold", seconds=10),
            Stage(kind="spike", seconds=5, customers=3),
            Stage(kind="storm", seconds=5, share=0.5, who="vendors"),
            Stage(kind="ramp", seconds=10, to=0),
        ]
    )
    assert course.total == 40
    assert course.levels(5) == Levels(0.5, 0.5)
    assert course.levels(15) == Levels(1, 1)
    assert course.levels(21) == Levels(1, 3)
    assert course.levels(26) == Levels(1, 1)
    assert course.levels(35) == Levels(0.5, 0.5)
    assert course.levels(99) == Levels(0, 0)
    assert course.peak() == Levels(1, 3)
    assert [(at, stage.share) for at, stage in course.storms()] == [(25, 0.5)]
    assert Course([Stage(kind="hold", seconds=3)]).levels(0) == Levels(1, 1)


@given(st.integers(0, 10_000), st.floats(0.05, 120), st.integers(1, 40))
def test_a_driver_keeps_to_the_streets_and_the_city(seed: int, gap: float, steps: int) -> None:
    """Watchers' cells are met as real traffic meets them: along streets, at a car's speed, within the city."""
    city = City(52.2297, 21.0122, 1500.0, 100.0)
    driver = Driving(city, Random(seed))
    before = driver.on_tick(0.0)[:2]
    for _ in range(steps):
        lat, long, heading, speed = driver.on_tick(gap)
        assert heading in (0, 90, 180, 270)
        assert speed is not None
        assert 0 <= speed <= DRIVE[1]
        east, north = (long - city.long) * city._east / 100, (lat - city.lat) * 111_195.0 / 100
        assert min(abs(east - round(east)), abs(north - round(north))) < 0.01
        assert math.hypot(east, north) * 100 < 1500 * math.sqrt(2) + 200
        travelled = abs(lat - before[0]) * 111_195.0 + abs(long - before[1]) * city._east
        assert travelled <= DRIVE[1] * gap + 0.5
        before = lat, long


def test_the_parked_stay_and_the_walking_walk() -> None:
    """A parked truck's fixes scatter as GPS does; a cart goes at a walk and stays in town."""
    city = City(-33.9, 18.4, 800.0, 100.0)
    parked = Parked(city, Random(1))
    fixes = [parked.on_tick(5.0) for _ in range(200)]
    assert max(abs(lat - fixes[0][0]) for lat, *_ in fixes) * 111_195.0 < 25
    walking = Walking(city, Random(2))
    before = walking.on_tick(0.0)[:2]
    for _ in range(2000):
        lat, long, _, _ = walking.on_tick(5.0)
        assert math.hypot((lat - before[0]) * 111_195.0, (long - before[1]) * city._east) < 1.7 * 5 + 0.5
        assert math.hypot((lat + 33.9) * 111_195.0, (long - 18.4) * city._east) < 900
        before = lat, long


def test_any_first_so_many_have_the_proportions() -> None:
    """A run with a tenth of the vendors must have all their kinds, not only the first."""
    for count in (10, 50, 400):
        kinds = [pick(index, [12, 4, 4]) for index in range(count)]
        assert abs(kinds.count(0) / count - 0.6) <= 0.1
        assert abs(kinds.count(2) / count - 0.2) <= 0.1


@given(st.floats(0, 2e12))
def test_live_pings_are_even(moment: float) -> None:
    """A customer's app decides by the timestamp which delays count."""
    assert on_grid(moment) % 2 == 0
    assert moment <= on_grid(moment) <= moment + GRID
