"""Reports of several machines that drove one run, added up: counts add, histograms add, the rest must agree. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from loadtest.errors import WrongUse
from loadtest.measure.histogram import Histogram
from loadtest.measure.timeline import shown
from loadtest.reports.verdict import judge

SAME = ("schema", "scenario", "settings", "parts", "planned_seconds", "warmup", "interval", "trace", "seed")
NESTED = ("errors", "closes", "rejected", "gave_up")


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of all; WrongUse when they are not parts of one run."""
    if len(reports) < 2:
        raise WrongUse("merging needs the reports of at least two machines")
    first = reports[0]
    for number, other in enumerate(reports, 1):
        if other["kind"] not in ("run", "merged"):
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
    parts = sorted(part for report in reports for part in report.get("merged_parts", [report["part"]]))
    if len(set(parts)) != len(parts):
        raise WrongUse(f"these are the parts {parts}: each may be there once")
    missing = sorted(set(range(1, first["parts"] + 1)) - set(parts))
    merged = {
        **first,
        "kind": "merged",
        "merged_parts": parts,
        "machines": sum(report["machines"] for report in reports),
        "workers": sum(report["workers"] for report in reports),
        "seconds": min(report["seconds"] for report in reports),
        "failures": [failure for report in reports for failure in report["failures"]],
        "interrupted": any(report["interrupted"] for report in reports),
        "totals": {
            **plus(*({k: v for k, v in report["totals"].items() if k not in NESTED} for report in reports)),
            **{name: plus(*(report["totals"][name] for report in reports)) for name in NESTED},
        },
        "measured": plus(*(report["measured"] for report in reports)),
        "delays": delays([report["delays"] for report in reports]),
        "server": best_known([report["server"] for report in reports]),
        "generator": {
            "cpu": plus(*(report["generator"]["cpu"] for report in reports)),
            "coordinator_cpu": round(sum(report["generator"]["coordinator_cpu"] for report in reports), 3),
            "clock_offset_ms": max((report["generator"]["clock_offset_ms"] for report in reports), key=abs),
            "clock_error_ms": max(report["generator"]["clock_error_ms"] for report in reports),
        },
        "checks": checks([report["checks"] for report in reports]),
        "series": series([report["series"] for report in reports]),
    }
    judged = judge(merged)
    # what made one machine's report doubtful (that it was late, say) drowns in the sum
    doubted = [
        f"part {report['part']}: {reason}" for report in reports for reason in report["reasons"] if "itself" in reason
    ]
    if missing:
        doubted.append(f"the parts {missing} of {first['parts']} are missing")
    reasons = judged["reasons"] + [reason for reason in doubted if reason not in judged["reasons"]]
    return judged | {"reasons": reasons, "ok": not reasons}


def brief(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def began(report: dict[str, Any]) -> datetime:
    """When a run started."""
    return datetime.fromisoformat(report["started"])


def plus(*counts: dict[str, Any]) -> dict[str, Any]:
    """The sums by name."""
    sums: dict[str, Any] = {}
    for some in counts:
        for name, value in some.items():
            sums[name] = round(sums.get(name, 0) + value, 6)
    return sums


def delays(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Histograms by name, added up."""
    made = {}
    for name in sorted({name for some in found for name in some}):
        whole = Histogram()
        for some in found:
            if name in some:
                whole.add(some[name]["hdr"])
        made[name] = shown(whole)
    return made


def best_known(found: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The server was looked at by several: whoever saw its processes knows most."""
    known = [one for one in found if one is not None]
    return min(known, key=lambda one: one["source"] != "processes", default=None)


def checks(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All differences of all machines."""
    made: dict[str, Any] = {}
    for some in found:
        for name, check in some.items():
            before = made.setdefault(name, {"ok": True, "differences": 0, "shown": []})
            for key, value in check.items():
                if key == "ok":
                    before["ok"] = before["ok"] and value
                elif key == "shown":
                    before["shown"] = (before["shown"] + value)[:10]
                else:
                    before[key] = before.get(key, 0) + value
    return made


def series(found: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Second by second; as far as the longest."""
    made: dict[float, list[dict[str, Any]]] = {}
    for entries in found:
        for entry in entries:
            made.setdefault(entry["t"], []).append(entry)
    merged = []
    for at in sorted(made):
        entries = made[at]
        one = {
            **entries[0],
            "seconds": max(entry["seconds"] for entry in entries),
            "vendors": sum(entry["vendors"] for entry in entries),
            "customers": sum(entry["customers"] for entry in entries),
            "own_cpu": round(sum(entry["own_cpu"] for entry in entries), 3),
            "counts": plus(*(entry["counts"] for entry in entries)),
            "delays": delays([entry["delays"] for entry in entries]),
        }
        known = [entry["server"] for entry in entries if "server" in entry]
        if known:
            one["server"] = max(known, key=lambda server: len(server["cores"]))
        merged.append(one)
    return merged
