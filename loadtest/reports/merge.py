"""Merges the reports of several machines that drove one run: counts and histograms add, the rest must agree. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from loadtest.engine.run import MEASURED, add_checks
from loadtest.errors import WrongUse
from loadtest.measure.recording import Histogram, shown
from loadtest.reports.verdict import judge, per_customer

SAME = ("schema", "scenario", "settings", "parts", "planned_seconds", "warmup", "interval", "trace", "seed")
NESTED = ("errors", "closes", "rejected", "gave_up")


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one report of all; raises WrongUse when they are not parts of one run."""
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
    checks: dict[str, Any] = {}
    for report in reports:
        add_checks(checks, report["checks"])
    together = series([report["series"] for report in reports])
    # rates are of the time in which every machine took part
    shared = [entry for entry in together if entry["measured"] and entry["machines"] == len(reports)]
    merged = {
        **first,
        "kind": "merged",
        "merged_parts": parts,
        "machines": sum(report["machines"] for report in reports),
        "workers": sum(report["workers"] for report in reports),
        "seconds": round(sum(entry["seconds"] for entry in shared), 3),
        "failures": [failure for report in reports for failure in report["failures"]],
        "interrupted": any(report["interrupted"] for report in reports),
        "totals": {
            **plus(*({k: v for k, v in report["totals"].items() if k not in NESTED} for report in reports)),
            **{name: plus(*(report["totals"][name] for report in reports)) for name in NESTED},
        },
        "measured": {name: sum(entry["counts"].get(name, 0) for entry in shared) for name in MEASURED},
        "delays": delays([report["delays"] for report in reports]),
        "server": best_known([report["server"] for report in reports]),
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
        "compared": plus(*(report["compared"] for report in reports)) | of_scenario(first),
        "incidents": [line for report in reports for line in report["incidents"]],
        "series": together,
    }
    judged = judge(merged)
    # what makes one machine's report doubtful, such as its own lateness, would not show in the sum
    doubts = [
        f"part {report['part']}: {reason}" for report in reports for reason in report["reasons"] if "itself" in reason
    ]
    if missing:
        doubts.append(f"the parts {missing} of {first['parts']} are missing")
    reasons = judged["reasons"] + [reason for reason in doubts if reason not in judged["reasons"]]
    return judged | {"reasons": reasons, "ok": not reasons}


def of_scenario(report: dict[str, Any]) -> dict[str, int]:
    """Returns how many vendors and customers the scenario has; each machine's report names all of them."""
    return {name: report["compared"][name] for name in ("vendors_of", "customers_of")}


def brief(value: Any) -> str:
    """Returns a value for a message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def began(report: dict[str, Any]) -> datetime:
    """Returns when a run started."""
    return datetime.fromisoformat(report["started"])


def plus(*counts: dict[str, Any]) -> dict[str, Any]:
    """Returns the sums by name."""
    sums: dict[str, Any] = {}
    for some in counts:
        for name, value in some.items():
            sums[name] = round(sums.get(name, 0) + value, 6)
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


def best_known(found: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Returns the best of several measurements of the server: that of its processes, if there is one."""
    known = [one for one in found if one is not None]
    return min(known, key=lambda one: one["source"] != "processes", default=None)


def series(found: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the series added up, as long as the longest; `machines` says how many took part in each entry."""
    made: dict[float, list[dict[str, Any]]] = {}
    for entries in found:
        for entry in entries:
            made.setdefault(entry["t"], []).append(entry)
    merged = []
    for at in sorted(made):
        entries = made[at]
        one = {
            **entries[0],
            "machines": sum(entry.get("machines", 1) for entry in entries),
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
