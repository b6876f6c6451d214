"""The capacity computation: if it is wrong, the plan in docs/scaling.md is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.capacity import Costs, Need, Plan, table
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "scaling.md"
PEAK = Plan(1_000_000, 1_000_000)
ALL = Plan(1_000_000, 10_000_000, regions=64)
MOVING = replace(ALL, moving=1.0, moving_every=1.0)


@pytest.mark.parametrize(("name", "plan"), [("peak", PEAK), ("all", ALL), ("moving", MOVING)])
def test_the_page_agrees_with_the_arithmetic(name: str, plan: Plan) -> None:
    """Each of its tables is the command's output."""
    rows = "\n".join(table(plan, Need(plan)))
    assert f"<!-- {name} -->\n{rows}\n" in PAGE.read_text()


def test_by_hand() -> None:
    """One small plan, worked out on paper."""
    plan = Plan(600, 1000, moving=0.5, moving_every=1.0, parked_every=60.0, in_view=2.0, busy=0.5)
    found = Need(plan)
    assert found.pings == pytest.approx(305)  # 300 that move, 300 parked ones every minute
    assert found.frames == found.deliveries == pytest.approx(1000 * 2 * 305 / 600)
    assert found.rows == pytest.approx(305 + 150 + 5)
    assert found.processes == 2
    assert found.disk_per_day == pytest.approx(305 * 277 * 86_400)
    assert found.back_in == pytest.approx(1600 / (2 * 300))


def test_a_plan_that_no_number_of_processes_can_carry_is_refused() -> None:
    """A million pings a second heard by every process: more processes don't help, and the command says so."""
    with pytest.raises(ValueError, match="more regions are needed"):
        Need(replace(MOVING, regions=1))
    command = [sys.executable, "-m", "loadtest", "capacity", "--vendors", "1000000", "--customers", "1"]
    done = subprocess.run(
        [*command, "--moving", "1", "--moving-every", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "more regions are needed" in done.stderr


@given(st.integers(1, 10**6), st.integers(0, 10**7), st.floats(0, 1), st.floats(1, 10))
def test_more_of_anything_never_needs_less(vendors: int, customers: int, moving: float, cost: float) -> None:
    """Monotonic: a plan that can be carried out is so with fewer clients and cheaper work."""
    plan = Plan(vendors, customers, moving=moving, regions=64)
    found = Need(plan)
    more = Need(replace(plan, vendors=vendors * 2, customers=customers * 2))
    dearer = Need(plan, replace(Costs(), cost_ping=Costs().cost_ping * cost, cost_frame=Costs().cost_frame * cost))
    assert more.processes >= found.processes
    assert dearer.processes >= found.processes
    assert more.disk_per_day >= found.disk_per_day
