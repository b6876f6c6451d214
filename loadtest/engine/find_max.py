"""Searches for the highest load that keeps the thresholds: doubled until one breaks, then narrowed down."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from loadtest import WrongUse
from loadtest.engine.run import SCHEMA
from loadtest.engine.scenario import MAX_APPS, Scenario, Stage
from loadtest.options import SearchOptions, Vary

CLOSE = 1.12
PAUSE = 1.0
STEEP = 2.0
CONNECTED_PER_S = 200
"""Clients that a ramp adds a second. Workers connect no faster, and a server admits 300: after a steeper ramp clients
would still wait for their connection when the measurement begins."""

Step = Callable[[Scenario, float], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Search:
    """What to try next, and what was tried. Pure: `tried` takes each scale and whether it kept the thresholds.

    `highest` is the largest scale that may be tried; at most `most` are. `confirmed`: the answer kept them twice.
    `own_limit`: the load generator was the limit.
    """

    first: float
    highest: float
    most: int
    kept: float | None = None
    broken: float | None = None
    count: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[float, dict[str, Any]] = field(default_factory=dict)
    confirmed: bool = False
    own_limit: bool = False

    def next(self) -> float | None:
        """Returns the next scale; None when the answer is known well enough."""
        if self.count >= self.most:
            return None
        if self.kept is None and self.broken is None:
            return min(self.first, self.highest)
        if self.broken is None:
            assert self.kept is not None
            return min(2 * self.kept, self.highest) if self.kept < self.highest else None
        if self.kept is None:
            return self.broken / 2
        return math.sqrt(self.kept * self.broken) if self.broken / self.kept > CLOSE else None

    def tried(self, scale: float, ok: bool) -> None:
        """Takes in a scale that was tried."""
        self.count += 1
        if ok:
            self.kept = max(scale, self.kept or 0.0)
        else:
            self.broken = min(scale, self.broken or math.inf)


def step_scenario(scenario: Scenario, scale: float, vary: Vary, seconds: float) -> Scenario:
    """Returns one step: a ramp, and then `seconds` at the level; only the count that varies grows."""
    scaled = scenario.scaled(scale)
    if vary != "both":
        other = "customers" if vary == "vendors" else "vendors"
        scaled = scaled.changed({other: getattr(scenario, other).model_dump()})
    ramp = max(1.0, math.ceil((scaled.vendors.count + scaled.customers.count) / CONNECTED_PER_S))
    stages = (Stage(kind="ramp", seconds=ramp, to=1), Stage(kind="hold", seconds=seconds + 1))
    return scaled.changed({"stages": [stage.model_dump() for stage in stages], "warmup": ramp + 1})


async def find(
    scenario: Scenario,
    name: str,
    options: SearchOptions,
    run: Step,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Searches; a scale that breaks a threshold, and the highest that keeps them, is run a second time to be sure."""
    names = {threshold.name for threshold in scenario.limits()} - {"freshness_max_ms"}
    if not any(name.endswith("_ms") for name in names):
        raise WrongUse("find-max needs a threshold on a delay, for example --threshold 'watch_p99_ms<=200'")
    highest = min(options.highest, MAX_APPS / max(scenario.vendors.count, scenario.customers.count))
    search = Search(options.first, highest, options.most)
    while not stopped():
        scale = search.next()
        if scale is None:
            if search.kept is None or search.confirmed:
                break
            say(f"once more at {search.kept:.3g} times, to confirm it")
            scale, search.confirmed = search.kept, True
        step = step_scenario(scenario, scale, options.vary, options.seconds)
        report = await run(step, scale)
        if not report["ok"] and not search.confirmed and not stopped() and not too_slow(report):
            say(f"{scale:.3g} times broke a threshold; once more, to be sure")
            await asyncio.sleep(PAUSE)
            again = await run(step, scale)
            if again["ok"] or len(again["reasons"]) < len(report["reasons"]):
                report = again
        search.steps.append(
            {
                "scale": round(scale, 4),
                "vendors": step.vendors.count,
                "customers": step.customers.count,
                **{name: report[name] for name in ("figures", "thresholds", "ok", "reasons")},
            }
        )
        search.own_limit = search.own_limit or too_slow(report)
        if search.confirmed and not report["ok"]:
            # it kept the thresholds only once: the next lower scale is the answer
            lower = [one for one, before in search.reports.items() if one < scale and before["ok"]]
            search.kept, search.broken = max(lower, default=None), scale
            search.reports[scale], search.confirmed = report, False
        elif not search.confirmed:
            search.tried(scale, report["ok"])
            search.reports[scale] = report
        say(f"{scale:.3g} times: {'kept' if report['ok'] else '; '.join(report['reasons'])}")
        await asyncio.sleep(PAUSE)
    return result(scenario, name, options.vary, search, stopped())


def too_slow(report: dict[str, Any]) -> bool:
    """Returns whether the load generator was the limit."""
    return any("itself" in reason for reason in report["reasons"])


def result(scenario: Scenario, name: str, vary: Vary, search: Search, interrupted: bool) -> dict[str, Any]:
    """Returns the report of a search."""
    best = search.reports.get(search.kept) if search.kept is not None else None
    reasons = []
    if best is None:
        reasons.append("not even the lowest load that was tried kept the thresholds")
    if search.own_limit:
        reasons.append(
            "the load generator itself was the limit: the server holds at least this, perhaps more; "
            "give it more --workers or another machine"
        )
    if not search.steps:
        reasons.append("nothing was tried")
    figures = {}
    said = "No load kept the thresholds"
    if best is not None:
        found = best["figures"]
        figures = {f"max_{key}": found[key] for key in ("pings_per_s", "positions_per_s")} | found
        settings = best["settings"]
        said = (
            f"{settings['vendors']['count']:,} vendors and {settings['customers']['count']:,} customers:"
            f" {found['pings_per_s'] or 0:,.0f} pings/s, {found['positions_per_s'] or 0:,.0f} positions/s"
        )
        if not search.confirmed:
            said += ", in a single run"
        if search.broken is None and not search.own_limit:
            said += ", and more was not tried"
        elif search.broken is not None:
            said += f"; the limit is between {search.kept:.3g} and {search.broken:.3g} times the scenario"
    return {
        "schema": SCHEMA,
        "kind": "find-max",
        "scenario": name,
        "settings": scenario.model_dump(mode="json"),
        **{key: best[key] if best else {} for key in ("tags", "environment")},
        **{key: best[key] if best else "" for key in ("target", "started")},
        "vary": vary,
        "confirmed": search.confirmed,
        "steps": search.steps,
        "kept_scale": search.kept,
        "broken_scale": search.broken,
        "knee": knee(search.steps),
        "figures": figures,
        "said": said,
        "best": best,
        "interrupted": interrupted,
        "reasons": reasons,
        "ok": not reasons,
    }


def knee(steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the last step before delay grows much faster than load: where its logarithmic slope first is over 2."""
    known = sorted(
        (step for step in steps if step["figures"].get("watch_p99_ms") or step["figures"].get("ack_p99_ms")),
        key=lambda step: step["scale"],
    )
    for lower, upper in pairwise(known):
        slow = "watch_p99_ms" if lower["figures"].get("watch_p99_ms") else "ack_p99_ms"
        delay, load = upper["figures"].get(slow), upper["scale"] / lower["scale"]
        if delay and load > 1.01 and math.log(max(1.0, delay / lower["figures"][slow])) > STEEP * math.log(load):
            return {"scale": lower["scale"], "p99_ms": lower["figures"][slow], "then_ms": delay}
    return None
