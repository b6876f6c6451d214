"""Compares two reports figure by figure, with the noise of repeated runs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from loadtest.errors import WrongUse
from loadtest.measure.recording import Histogram

BLOCKS = 5
CERTAIN = 2.5
"""A change counts when it is this many times its noise."""

# figure: whether more is better; the absolute change that is too small to matter
FIGURES: dict[str, tuple[bool, float]] = {
    "watch_p50_ms": (False, 1.0),
    "watch_p99_ms": (False, 2.0),
    "watch_p999_ms": (False, 5.0),
    "ack_p50_ms": (False, 1.0),
    "ack_p99_ms": (False, 2.0),
    "snapshot_p50_ms": (False, 1.0),
    "snapshot_p99_ms": (False, 2.0),
    "pan_p99_ms": (False, 2.0),
    "server_cores": (False, 0.01),
    "server_us_per_ping": (False, 1.0),
    "server_us_per_position": (False, 0.01),
    "server_mb": (False, 5.0),
    "acks_per_s": (True, 1.0),
    "positions_per_s": (True, 10.0),
    "max_pings_per_s": (True, 1.0),
    "max_positions_per_s": (True, 10.0),
    "freshness_max_ms": (False, 50.0),
    "lost": (False, 0.5),
    "unacked": (False, 0.5),
    "errors": (False, 0.5),
}
CLOSE = 0.05
"""The error of what `find-max` finds, as a share: it stops when the limit is known to about a tenth."""

EXACT = frozenset({"lost", "unacked", "errors"})


@dataclass(frozen=True, slots=True)
class Change:
    """One figure before and after. `noise` is a standard error as a share of `before`; `verdict` says what it means:
    better, worse, same (within the tolerance), small (too small to matter in absolute terms), noise (no larger than
    the noise), or unknown (nothing shows the noise).
    """

    name: str
    before: float
    after: float
    noise: float | None
    verdict: str

    @property
    def change(self) -> float | None:
        """The change as a share of `before`."""
        return (self.after - self.before) / self.before if self.before else None


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """Compares all common figures; `ok` is false when one is worse by more than `tolerance` (a share) and the noise."""
    same_kind(before, after)
    changes = []
    for name, (more_is_better, least) in FIGURES.items():
        olds, news = samples(before, name), samples(after, name)
        if not olds or not news:
            continue
        old, new = median(olds), median(news)
        noise = error(before, name, olds), error(after, name, news)
        known = [one for one in noise if one is not None]
        together = math.hypot(*known) if known else None
        gap = abs(new - old)
        certain = name in EXACT or (together is not None and gap > CERTAIN * together)
        if gap <= tolerance * abs(old) and (gap == 0 if name in EXACT else together is not None):
            verdict = "same"
        elif gap <= least:
            verdict = "small"
        elif together is None and name not in EXACT:
            verdict = "unknown"
        elif not certain:
            verdict = "noise"
        else:
            verdict = "better" if (new > old) == more_is_better else "worse"
        share = together / abs(old) if together is not None and old else None
        changes.append(Change(name, old, new, share, verdict))
    if not changes:
        raise WrongUse("the two reports have no figure in common")
    worse = [change.name for change in changes if change.verdict == "worse"]
    reasons = [f"{name} got worse" for name in worse]
    if before["ok"] and not after["ok"]:
        reasons += [f"the later run failed: {reason}" for reason in after["reasons"]]
    return {
        "kind": "compare",
        "runs": [runs(before), runs(after)],
        "tolerance": tolerance,
        "changes": [
            {
                "name": change.name,
                "before": change.before,
                "after": change.after,
                "change": change.change,
                "noise": change.noise,
                "verdict": change.verdict,
            }
            for change in changes
        ],
        "different": different(before["settings"], after["settings"])
        + different(before["environment"], after["environment"], "environment"),
        "series": [before.get("series", []), after.get("series", [])],
        "advice": advice(changes, runs(before), runs(after)),
        "reasons": reasons,
        "ok": not reasons,
    }


def advice(changes: Sequence[Change], before: int, after: int) -> list[str]:
    """Returns what to repeat, where the noise of a figure is not known or covers the change."""
    found = []
    if min(before, after) < 3:
        unknown = [change.name for change in changes if change.noise is None and change.verdict == "unknown"]
        if unknown:
            found.append(f"the noise of {', '.join(unknown)} is unknown: run both again with --repeat 3 or more")
    if noisy := [change.name for change in changes if change.verdict == "noise"]:
        found.append(
            f"the change of {', '.join(noisy)} is within the noise: repeat both more often to see smaller ones"
        )
    return found


def same_kind(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises WrongUse when the two can't be compared."""
    if (before["kind"] == "find-max") != (after["kind"] == "find-max"):
        raise WrongUse("one report is of find-max, the other is not: compare what was done in the same way")
    if before["scenario"] != after["scenario"]:
        raise WrongUse(
            f"one report is of {before['scenario']}, the other of {after['scenario']}: their figures say nothing "
            "about each other"
        )


def samples(report: dict[str, Any], name: str) -> list[float]:
    """Returns a figure of every run in a report."""
    found = [figures.get(name) for figures in report.get("repeats") or [report["figures"]]]
    return [float(value) for value in found if value is not None]


def runs(report: dict[str, Any]) -> int:
    """Returns how many runs a report holds."""
    return len(report.get("repeats") or [None])


def error(report: dict[str, Any], name: str, values: Sequence[float]) -> float | None:
    """Returns the standard error of a figure: between repeated runs, else between the fifths of a single run."""
    if len(values) >= 2:
        # with so few runs the spread is itself uncertain: Student's t for 95 %, less its value for many
        return stdev(values) / math.sqrt(len(values)) * {2: 6.5, 3: 2.2, 4: 1.6, 5: 1.4}.get(len(values), 1.2)
    if name.startswith("max_"):
        return values[0] * CLOSE
    blocks = within(report, name)
    return stdev(blocks) / math.sqrt(len(blocks)) if len(blocks) >= 3 else None


def within(report: dict[str, Any], name: str) -> list[float]:
    """Returns a figure of each fifth of a run, where the series contains it."""
    measured = [entry for entry in report.get("series", []) if entry["measured"]]
    size = len(measured) // BLOCKS
    if size < 1:
        return []
    blocks = [measured[number * size : (number + 1) * size] for number in range(BLOCKS)]
    found = [part(block, name) for block in blocks]
    return [value for value in found if value is not None]


def part(block: Sequence[dict[str, Any]], name: str) -> float | None:
    """Returns a figure of some seconds."""
    seconds = sum(entry["seconds"] for entry in block)
    if name == "server_cores":
        cores = [entry["server"]["cores"]["all"] for entry in block if "server" in entry]
        return mean(cores) if cores else None
    if name == "server_mb":
        sizes = [entry["server"]["resident_mb"]["all"] for entry in block if "server" in entry]
        return max(sizes) if sizes else None
    if name in ("acks_per_s", "positions_per_s"):
        counted = {"acks_per_s": "acked", "positions_per_s": "positions"}[name]
        return float(sum(entry["counts"].get(counted, 0) for entry in block) / seconds)
    kind, _, point = name.removesuffix("_ms").partition("_")
    if kind not in ("watch", "ack") or point not in ("p50", "p90", "p99", "p999"):
        return None
    whole = Histogram()
    for entry in block:
        if kind in entry["delays"]:
            whole.add(entry["delays"][kind]["hdr"])
    return whole.summary(strict=False).get(f"{point}_ms")


def different(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Returns where two settings differ, by dotted names."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for name in sorted(before.keys() | after.keys())
            for line in different(before.get(name), after.get(name), f"{prefix}.{name}" if prefix else name)
        ]
    return [] if before == after else [f"{prefix}: {before!r}, then {after!r}"]
