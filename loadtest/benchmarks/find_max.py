"""The highest load that keeps the promises: doubled until one breaks, then narrowed down."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from loadtest.engine.run import SCHEMA
from loadtest.engine.scenario import MAX_APPS, Scenario, Stage
from loadtest.errors import WrongUse

CLOSE = 1.12
PAUSE = 1.0
STEEP = 2.0

Vary = Literal["both", "vendors", "customers"]
Step = Callable[[Scenario, float], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Search:
    """What to try next. Pure: `tried` is told of every scale whether it kept the promises.

    `highest` is the largest scale that may be tried; at most `most` are.
    """

    first: float
    highest: float
    most: int
    kept: float | None = None
    broken: float | None = None
    count: int = 0

    def next(self) -> float | None:
        """The next scale; None when the answer is known as well as it is going to be."""
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
        """A scale was tried."""
        self.count += 1
        if ok:
            self.kept = max(scale, self.kept or 0.0)
        else:
            self.broken = min(scale, self.broken or math.inf)


def step_scenario(scenario: Scenario, scale: float, vary: Vary, seconds: float) -> Scenario:
    """One step: a ramp, and then `seconds` at the level; only one of the counts when only that is to vary."""
    scaled = scenario.scaled(scale)
    if vary != "both":
        other = "customers" if vary == "vendors" else "vendors"
        scaled = scaled.changed({other: getattr(scenario, other).model_dump()})
    apps = scaled.vendors.count + scaled.customers.count
    ramp = max(1.0, math.ceil(apps / 500))
    stages = (Stage(kind="ramp", seconds=ramp, to=1), Stage(kind="hold", seconds=seconds + 1))
    return scaled.changed({"stages": [stage.model_dump() for stage in stages], "warmup": ramp + 1})


async def find(
    scenario: Scenario,
    name: str,
    run: Step,
    *,
    vary: Vary,
    first: float,
    most: int,
    highest: float,
    seconds: float,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Search; a scale that breaks a promise is tried once more before it is believed."""
    if all(limit is None for limit in scenario.promises.model_dump().values()):
        raise WrongUse("find-max needs a promise to keep, for example --p99-ms 200 --lost 0")
    search = Search(first, min(highest, MAX_APPS / max(scenario.vendors.count, scenario.customers.count)), most)
    steps: list[dict[str, Any]] = []
    best: dict[str, Any] | None = None
    own_limit = False
    while (scale := search.next()) is not None and not stopped():
        wanted = step_scenario(scenario, scale, vary, seconds)
        report = await run(wanted, scale)
        if not report["ok"] and not stopped() and not too_slow(report):
            say(f"{scale:.3g} times broke a promise; once more, to be sure")
            await asyncio.sleep(PAUSE)
            again = await run(wanted, scale)
            report = again if again["ok"] or not better(report, again) else report
        steps.append(
            {
                "scale": round(scale, 4),
                "vendors": wanted.vendors.count,
                "customers": wanted.customers.count,
                "figures": report["figures"],
                "ok": report["ok"],
                "reasons": report["reasons"],
            }
        )
        own_limit = own_limit or too_slow(report)
        search.tried(scale, report["ok"])
        if report["ok"] and scale == search.kept:
            best = report
        say(f"{scale:.3g} times: {'kept' if report['ok'] else '; '.join(report['reasons'])}")
        await asyncio.sleep(PAUSE)
    return result(scenario, name, steps, best, search, own_limit, vary, stopped())


def too_slow(report: dict[str, Any]) -> bool:
    """Whether the generator was the limit."""
    return any("itself" in reason for reason in report["reasons"])


def better(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one broken run is the fairer of two."""
    return len(one["reasons"]) <= len(other["reasons"])


def result(
    scenario: Scenario,
    name: str,
    steps: Sequence[dict[str, Any]],
    best: dict[str, Any] | None,
    search: Search,
    own_limit: bool,
    vary: Vary,
    interrupted: bool,
) -> dict[str, Any]:
    """The report of a search."""
    reasons = []
    if best is None:
        reasons.append("not even the lowest load that was tried kept the promises")
    if own_limit:
        reasons.append(
            "the load generator itself was the limit: the server holds at least this, and nobody knows how much more; "
            "give it more --workers or another machine"
        )
    if not steps:
        reasons.append("nothing was tried")
    figures = {}
    said = "No load kept the promises"
    if best is not None:
        found = best["figures"]
        figures = {f"max_{key}": found[key] for key in ("pings_per_s", "positions_per_s")} | found
        settings = best["settings"]
        said = (
            f"{settings['vendors']['count']:,} vendors and {settings['customers']['count']:,} customers:"
            f" {found['pings_per_s'] or 0:,.0f} pings/s, {found['positions_per_s'] or 0:,.0f} positions/s"
        )
        if search.broken is None and not own_limit:
            said += ", and more was not tried"
    return {
        "schema": SCHEMA,
        "kind": "find-max",
        "scenario": name,
        "settings": scenario.model_dump(mode="json"),
        "target": best["target"] if best else "",
        "started": best["started"] if best else "",
        "vary": vary,
        "steps": list(steps),
        "kept_scale": search.kept,
        "broken_scale": search.broken,
        "knee": knee(steps),
        "figures": figures,
        "said": said,
        "best": best,
        "interrupted": interrupted,
        "reasons": reasons,
        "ok": not reasons,
    }


def knee(steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The last step before delay grows much faster than load: where its slope, in logarithms, first is over 2."""
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
