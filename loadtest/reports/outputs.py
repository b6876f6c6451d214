"""A report in the formats of other tools: JSON, CSV, Prometheus text, JUnit XML. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import orjson

from loadtest.reports.html import page

NAMES = {"json": ".json", "html": ".html", "csv": ".csv", "prometheus": ".prom", "junit": ".xml"}
"""Formats by the name for --out."""


def as_json(report: dict[str, Any]) -> str:
    """Returns the whole report as one line of JSON."""
    return orjson.dumps(report, option=orjson.OPT_NON_STR_KEYS).decode() + "\n"


def as_csv(report: dict[str, Any]) -> str:
    """Returns the series, one row per interval: counts per name, delays in ms, CPU cores and memory of the server."""
    series = (report["best"] or {"series": []} if report["kind"] == "find-max" else report)["series"]
    counts = sorted({name for entry in series for name in entry["counts"]})
    delays = [f"{name}_{point}_ms" for name in ("watch", "ack", "freshness") for point in ("p50", "p90", "p99", "max")]
    out = io.StringIO()
    rows = csv.writer(out)
    common = ("t", "seconds", "measured", "vendors", "customers")
    rows.writerow([*common, *counts, *delays, "own_cpu", "server_cores", "server_mb"])
    for entry in series:
        used = entry.get("server", {})
        known = {f"{name}_{point}": value for name, found in entry["delays"].items() for point, value in found.items()}
        rows.writerow(
            [
                *(entry[name] for name in common),
                *(entry["counts"].get(name, 0) for name in counts),
                *(known.get(name) for name in delays),
                entry["own_cpu"],
                used.get("cores", {}).get("all"),
                used.get("resident_mb", {}).get("all"),
            ]
        )
    return out.getvalue()


def as_prometheus(report: dict[str, Any]) -> str:
    """Returns every figure as a gauge in the Prometheus text format, with the tags as labels."""
    tags = {"scenario": report["scenario"], **report.get("tags", {})}
    labels = ",".join(f"{name}={quoted(value)}" for name, value in tags.items())
    lines = []
    for name, value in [*report["figures"].items(), ("ok", float(report["ok"]))]:
        if value is not None:
            lines += [f"# TYPE venta_loadtest_{name} gauge", f"venta_loadtest_{name}{{{labels}}} {value:g}"]
    return "\n".join(lines) + "\n"


def as_junit(report: dict[str, Any]) -> str:
    """Returns a JUnit test suite: one case per threshold and check, and one for the run itself."""
    cases: list[tuple[str, list[str], bool]] = []
    for one in report.get("thresholds", []):
        cases.append((one["threshold"], [one["said"]] if one["ok"] is False else [], one["ok"] is None))
    for name, check in report.get("checks", {}).items():
        cases.append((f"check: {name}", [] if check["ok"] else check["shown"], False))
    known = {line for _, lines, _ in cases for line in lines}
    others = [
        reason
        for reason in report["reasons"]
        if not reason.startswith("threshold ") and not any(line in reason for line in known)
    ]
    cases.append(("run", others, False))
    failures = sum(bool(lines) for _, lines, _ in cases)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuite name={quoteattr("loadtest " + report["scenario"])} tests="{len(cases)}" failures="{failures}"'
        f" timestamp={quoteattr(report['started'])}>",
    ]
    for name, problems, skipped in cases:
        inside = "<skipped/>" if skipped else ""
        if problems:
            inside = f"<failure message={quoteattr(problems[0])}>{escape(chr(10).join(problems))}</failure>"
        lines.append(f"<testcase classname={quoteattr(report['scenario'])} name={quoteattr(name)}>{inside}</testcase>")
    return "\n".join([*lines, "</testsuite>"]) + "\n"


def quoted(value: str) -> str:
    """Returns a Prometheus label value."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    ".json": as_json,
    ".html": page,
    ".csv": as_csv,
    ".prom": as_prometheus,
    ".xml": as_junit,
}
"""Writers by the extension of the file."""


def targets(outs: list[Path] | None, default: Path) -> list[Path]:
    """Returns the files to write: `csv` is the default in this format, another NAME is NAME.json and NAME.html."""
    found = []
    for out in outs or [default]:
        if str(out) in NAMES:
            found.append(default.with_name(default.name + NAMES[str(out)]))
        elif out.suffix in FORMATS:
            found.append(out)
        else:
            found += [out.with_name(out.name + suffix) for suffix in (".json", ".html")]
    return found
