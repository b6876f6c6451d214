"""Merging and comparing several reports. Pure.

Two reports are compared figure by figure, with the noise of repeated runs. Reports of several machines that drove one
run are merged: counts and histograms are added, the rest must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from statistics import mean, median, stdev
from typing import Any

from loadtest import WrongUse
from loadtest.engine.run import MEASURED
from loadtest.engine.verification import add_checks
from loadtest.measure.recording import Histogram, shown
from loadtest.reports.verdict import judge, per_customer

BLOCKS = 5
CERTAIN = 2.5
"""A change is significant from this many times its noise on."""

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
"""The relative error of `find-max`, which stops when the limit is known to about a tenth."""

EXACT = frozenset({"lost", "unacked", "errors"})

SAME = ("schema", "scenario", "settings", "parts", "planned_seconds", "warmup", "interval", "trace", "seed")
"""Values that must be equal in all parts of one run."""
OF_SCENARIO = ("vendors_of", "customers_of")
"""Counts of all machines that are in each machine's report."""


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """Compares all common figures; `ok` is false when one is worse by more than `tolerance` (a share) and the noise."""
    same_kind(before, after)
    changes = [found for name in FIGURES if (found := change(before, after, name, tolerance)) is not None]
    if not changes:
        raise WrongUse("the two reports have no figure in common")
    reasons = [f"{one['name']} got worse" for one in changes if one["verdict"] == "worse"]
    if before["ok"] and not after["ok"]:
        reasons += [f"the later run failed: {reason}" for reason in after["reasons"]]
    return {
        "kind": "compare",
        "runs": [len(runs(before)), len(runs(after))],
        "tolerance": tolerance,
        "changes": changes,
        "different": different(before["settings"], after["settings"])
        + different(before["environment"], after["environment"], "environment"),
        "series": [before.get("series", []), after.get("series", [])],
        "advice": advice(changes, min(len(runs(before)), len(runs(after)))),
        "reasons": reasons,
        "ok": not reasons,
    }


def change(before: dict[str, Any], after: dict[str, Any], name: str, tolerance: float) -> dict[str, Any] | None:
    """Returns one figure before and after; None when a report does not have it.

    `change` and `noise`, a standard error, are shares of `before`. `verdict` is better, worse, same (within the
    tolerance), small (too small to matter in absolute terms), noise (no larger than the noise), or unknown (nothing
    shows the noise).
    """
    more_is_better, least = FIGURES[name]
    olds, news = samples(before, name), samples(after, name)
    if not olds or not news:
        return None
    old, new = median(olds), median(news)
    known = [one for one in (error(before, name, olds), error(after, name, news)) if one is not None]
    noise = math.hypot(*known) if known else None
    gap, exact = abs(new - old), name in EXACT
    if gap <= tolerance * abs(old) and (gap == 0 if exact else noise is not None):
        verdict = "same"
    elif gap <= least:
        verdict = "small"
    elif noise is None and not exact:
        verdict = "unknown"
    elif not exact and noise is not None and gap <= CERTAIN * noise:
        verdict = "noise"
    else:
        verdict = "better" if (new > old) == more_is_better else "worse"
    return {
        "name": name,
        "before": old,
        "after": new,
        "change": (new - old) / old if old else None,
        "noise": noise / abs(old) if noise is not None and old else None,
        "verdict": verdict,
    }


def advice(changes: Sequence[dict[str, Any]], fewest: int) -> list[str]:
    """Returns which runs to repeat if the noise of a figure is unknown or exceeds the change."""
    unknown = [one["name"] for one in changes if one["verdict"] == "unknown" and one["noise"] is None]
    noisy = [one["name"] for one in changes if one["verdict"] == "noise"]
    found = []
    if unknown and fewest < 3:
        found.append(f"the noise of {', '.join(unknown)} is unknown: run both again with --repeat 3 or more")
    if noisy:
        found.append(
            f"the change of {', '.join(noisy)} is within the noise: repeat both more often to see smaller ones"
        )
    return found


def same_kind(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises WrongUse if the two can't be compared."""
    if (before["kind"] == "find-max") != (after["kind"] == "find-max"):
        raise WrongUse("one report is of find-max, the other is not: compare what was done in the same way")
    if before["scenario"] != after["scenario"]:
        raise WrongUse(
            f"one report is of {before['scenario']}, the other of {after['scenario']}: their figures say nothing "
            "about each other"
        )


def runs(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the figures of every run in a report."""
    return report.get("repeats") or [report["figures"]]


def samples(report: dict[str, Any], name: str) -> list[float]:
    """Returns a figure of every run in a report."""
    return [float(figures[name]) for figures in runs(report) if figures.get(name) is not None]


def error(report: dict[str, Any], name: str, values: Sequence[float]) -> float | None:
    """Returns the standard error of a figure: between repeated runs, else between the fifths of a single run."""
    if len(values) >= 2:
        # with so few runs the spread is uncertain, too: Student's t for 95 %, relative to its value for many runs
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
    """Returns a figure of a part of a run."""
    seconds = sum(entry["seconds"] for entry in block)
    used = [entry["server"] for entry in block if "server" in entry]
    if name == "server_cores":
        return mean(one["cores"]["all"] for one in used) if used else None
    if name == "server_mb":
        return max((one["resident_mb"]["all"] for one in used), default=None)
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
    """Returns the dotted names of settings that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for name in sorted(before.keys() | after.keys())
            for line in different(before.get(name), after.get(name), f"{prefix}.{name}" if prefix else name)
        ]
    return [] if before == after else [f"{prefix}: {before!r}, then {after!r}"]


# merging the reports of several machines


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merges reports into one; raises WrongUse if they are not parts of one run."""
    if len(reports) < 2:
        raise WrongUse("merging needs the reports of at least two machines")
    first = reports[0]
    for number, other in enumerate(reports, 1):
        if other["kind"] != "run":
            raise WrongUse(f"report {number} is of a {other['kind']}; only runs can be merged")
        for name in SAME:
            if other[name] != first[name]:
                raise WrongUse(
                    f"report {number} is no part of the same run: its {name} is {brief(other[name])}, "
                    f"that of the first {brief(first[name])}"
                )
        apart = abs((began(other) - began(first)).total_seconds())
        if apart > first["interval"]:
            raise WrongUse(
                f"report {number} started {apart:.1f} s from the first; give all machines the same --start-at"
            )
    parts = sorted(report["part"] for report in reports)
    if len(set(parts)) != len(parts):
        raise WrongUse(f"these are the parts {parts}: each may be there once")
    missing = sorted(set(range(1, first["parts"] + 1)) - set(parts))
    checks: dict[str, Any] = {}
    for report in reports:
        add_checks(checks, report["checks"])
    servers: list[dict[str, Any] | None] = [report["server"] for report in reports]
    together = series([report["series"] for report in reports])
    # rates cover the time in which all machines took part
    shared = [entry for entry in together if entry["measured"] and entry["machines"] == len(reports)]
    merged = {
        **first,
        "kind": "merged",
        "merged_parts": parts,
        "machines": len(reports),
        "workers": sum(report["workers"] for report in reports),
        "seconds": round(sum(entry["seconds"] for entry in shared), 3),
        "failures": [failure for report in reports for failure in report["failures"]],
        "interrupted": any(report["interrupted"] for report in reports),
        "totals": plus(*(report["totals"] for report in reports)),
        "measured": {name: sum(entry["counts"].get(name, 0) for entry in shared) for name in MEASURED},
        "delays": delays([report["delays"] for report in reports]),
        # what its processes used is known best
        "server": min(filter(None, servers), key=lambda one: one["source"] != "processes", default=None),
        "generator": {
            "cpu": plus(*(report["generator"]["cpu"] for report in reports)),
            "coordinator_cpu": round(sum(report["generator"]["coordinator_cpu"] for report in reports), 3),
            "clock_offset_ms": max((report["generator"]["clock_offset_ms"] for report in reports), key=abs),
            "clock_error_ms": max(report["generator"]["clock_error_ms"] for report in reports),
        },
        "checks": checks,
        "customers": per_customer(
            *([one for report in reports for one in report["customers"][name]] for name in ("slowest", "stalest"))
        ),
        "verified": all(report["verified"] for report in reports),
        "compared": plus(*(report["compared"] for report in reports))
        | {name: first["compared"][name] for name in OF_SCENARIO},
        "incidents": [line for report in reports for line in report["incidents"]],
        "series": together,
    }
    judged = judge(merged)
    # doubts about one machine's report, such as its own delay, would not be visible in the sum
    doubts = [
        f"part {report['part']}: {reason}" for report in reports for reason in report["reasons"] if "itself" in reason
    ]
    if missing:
        doubts.append(f"the parts {missing} of {first['parts']} are missing")
    reasons = judged["reasons"] + [reason for reason in doubts if reason not in judged["reasons"]]
    return judged | {"reasons": reasons, "ok": not reasons}


def brief(value: Any) -> str:
    """Formats a value for a message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def began(report: dict[str, Any]) -> datetime:
    """Returns when a run started."""
    return datetime.fromisoformat(report["started"])


def plus(*counts: dict[str, Any]) -> dict[str, Any]:
    """Returns the sums by name; nested counts are added by name, too."""
    sums: dict[str, Any] = {}
    for some in counts:
        for name, value in some.items():
            before = sums.get(name)
            sums[name] = plus(before or {}, value) if isinstance(value, dict) else round((before or 0) + value, 6)
    return sums


def delays(found: Sequence[dict[str, Any]], strict: bool = True) -> dict[str, Any]:
    """Returns the sums of histograms by name."""
    made = {}
    for name in sorted({name for some in found for name in some}):
        whole = Histogram()
        for some in found:
            if name in some:
                whole.add(some[name]["hdr"])
        made[name] = shown(whole, strict)
    return made


def series(found: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the sum of the series, as long as the longest; `machines` is the number of machines in each entry."""
    made: dict[float, list[dict[str, Any]]] = {}
    for entries in found:
        for entry in entries:
            made.setdefault(entry["t"], []).append(entry)
    merged = []
    for at in sorted(made):
        entries = made[at]
        one = {
            **entries[0],
            "machines": len(entries),
            "seconds": min(entry["seconds"] for entry in entries),
            "vendors": sum(entry["vendors"] for entry in entries),
            "customers": sum(entry["customers"] for entry in entries),
            "own_cpu": round(sum(entry["own_cpu"] for entry in entries), 3),
            "counts": plus(*(entry["counts"] for entry in entries)),
            "delays": delays([entry["delays"] for entry in entries], strict=False),
        }
        known = [entry["server"] for entry in entries if "server" in entry]
        if known:
            one["server"] = max(known, key=lambda server: len(server["cores"]))
        merged.append(one)
    return merged
