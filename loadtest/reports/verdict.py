"""A report's figures, and whether the run is valid and met its thresholds. Pure."""

from __future__ import annotations

from typing import Any

from loadtest.engine.scenario import DEFAULT_THRESHOLDS, Threshold, limits
from loadtest.measure.recording import POINTS, needed, time_of_day

SLACK = 0.01
ENOUGH = 1000
"""Below this number of pings or positions, the cost of each is mostly the server's idle cost."""
IDLE_CORES = 0.1
LATER_MS = 100
COMPARED = 20
LONG = 5
"""A customer counts as served late only if it was late for most of at least 5 seconds."""
NAMED = 5
DELAYS = {
    "watch": "ping → watcher",
    "ack": "ping → ack",
    "snapshot": "connect → snapshot",
    "pan": "pan → snapshot",
    "slow": "ping → slow phone",
    "recovery": "cut → ready again",
    "freshness": "freshness gap",
    "alert": "ping → webhook",
}
"""The measured delays of the server, in words."""
UNITS = ("rows", "vendors", "watchers", "cards", "observations")
NEEDS_DATABASE = "lost"
KNOWN = frozenset(
    {
        *("server_cores", "server_us_per_ping", "server_us_per_position", "server_mb", "server_kb_per_connection"),
        *("server_alone_us_per_ping", "server_alone_us_per_position", "acks_to_bare_copy"),
        *("bare_copy_rows_per_s", "bare_copy_commit_p50_ms", "bare_copy_commit_p99_ms"),
    }
)
"""Figures that not every run has."""


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the report with `figures`, `thresholds`, `notes`, `reasons` and `ok`, computed from the rest of it."""
    found = figures(report)
    kept = [outcome(limit, report, found) for limit in limits(report["settings"]["thresholds"])]
    reasons = [*report["failures"], *doubts(report, found)]
    reasons += [
        f"{name}: {check['differences']} differences, first {check['shown'][0] if check['shown'] else 'unknown'}"
        for name, check in report["checks"].items()
        if not check["ok"]
    ]
    reasons += [f"threshold {one['threshold']} was not kept: {one['said']}" for one in kept if one["ok"] is False]
    notes = remarks(report, found)
    return report | {"figures": found, "thresholds": kept, "notes": notes, "reasons": reasons, "ok": not reasons}


def figures(report: dict[str, Any]) -> dict[str, float | None]:
    """Returns the figures that are shown, compared and checked against thresholds; None if there is none."""
    seconds, counts, totals = report["seconds"], report["measured"], report["totals"]
    delays, server, own = report["delays"], report["server"], report["generator"]["cpu"]
    found: dict[str, float | None] = {
        "pings_per_s": rate(counts["sent"], seconds),
        "acks_per_s": rate(counts["acked"], seconds),
        "positions_per_s": rate(counts["positions"], seconds),
        "frames_per_s": rate(counts["frames"], seconds),
        "snapshots_per_s": rate(counts["snapshots"], seconds),
        "update_mb_per_s": rate(counts["update_bytes"] / 1e6, seconds),
        "bytes_per_position": round(counts["update_bytes"] / counts["positions"], 1) if counts["positions"] else None,
    }
    for name in DELAYS:
        for point in (*POINTS, "max"):
            found[f"{name}_{point}_ms"] = delays.get(name, {}).get(f"{point}_ms")
    for name in ("late", "lag"):
        found[f"{name}_p99_ms"] = delays.get(name, {}).get("p99_ms")
    found["unacked"] = totals["unanswered"] + totals["dropped"]
    found["lost"] = report["checks"]["stored"]["differences"] if "stored" in report["checks"] else None
    found["rejected"] = sum(totals["rejected"].values())
    found["errors"] = sum(totals["errors"].values()) + sum(totals["closes"].values())
    found["refused"] = totals["refused"]
    customers = report["customers"]
    found["slowest_customer_p50_ms"] = max((one["p50_ms"] for one in customers["slowest"]), default=None)
    found["customer_p50_p99_ms"] = customers["p50_p99_ms"]
    if server is not None:
        found["server_cores"] = round(server["cpu"]["all"] / server["seconds"], 3)
        for name, kind in (("server", "all"), ("server_alone", "server")):
            if kind in server["cpu"]:
                used = server["cpu"][kind] / server["seconds"] * seconds
                found[f"{name}_us_per_ping"] = micro(used, counts["sent"])
                found[f"{name}_us_per_position"] = micro(used, counts["positions"])
        found["server_mb"] = server["resident_mb"]["all"]
        found["server_kb_per_connection"] = server["kb_per_connection"]
    coordinator = report["generator"]["coordinator_cpu"] / (seconds + report["warmup"]) if seconds else 0.0
    found["own_cores"] = round(sum(own.values()) / seconds + coordinator, 3) if seconds else None
    found["own_us_per_ping"] = micro(own.get("vendors", 0.0), counts["sent"])
    found["own_us_per_position"] = micro(own.get("customers", 0.0), counts["positions"])
    for name, value in (report.get("bare_copy") or {}).items():
        found[f"bare_copy_{name}"] = value
    if (bare := found.get("bare_copy_rows_per_s")) and found["acks_per_s"]:
        found["acks_to_bare_copy"] = round(found["acks_per_s"] / bare, 3)
    return found


def outcome(limit: Threshold, report: dict[str, Any], found: dict[str, float | None]) -> dict[str, Any]:
    """Returns a threshold with its measured value; `ok` is null if there was nothing to measure."""
    value = found.get(limit.name)
    made = {"threshold": str(limit), "name": limit.name, "limit": limit.limit, "value": value}
    if value is not None:
        kept = limit.keeps(value)
        return made | {"ok": kept, "said": f"{value:g}" if kept else f"{value:g}{first_case(limit.name, report)}"}
    if limit.name not in found and limit.name not in KNOWN:
        return made | {"ok": False, "said": "there is no such figure"}
    default = limit.name in DEFAULT_THRESHOLDS and limit.name not in report["settings"]["thresholds"]
    if limit.name == NEEDS_DATABASE:
        said = "what is stored was not compared with the database"
        return made | {"ok": None if default and not report["verified"] else False, "said": said}
    kind, _, point = limit.name.removesuffix("_ms").rpartition("_")
    count = report["delays"].get(kind, {}).get("count", 0)
    if point in POINTS and count:
        return made | {"ok": False, "said": f"too few samples ({count}; {point} needs {needed(POINTS[point])})"}
    return made | {"ok": None if default else False, "said": "it was not measured"}


def first_case(name: str, report: dict[str, Any]) -> str:
    """Returns an example of a missed threshold, if one is known."""
    if name.startswith("freshness") and report["customers"]["stalest"]:
        return f"; {staleness(report['customers']['stalest'][0])}"
    return f"; {report['incidents'][0]}" if name == "errors" and report["incidents"] else ""


def doubts(report: dict[str, Any], found: dict[str, float | None]) -> list[str]:
    """Returns reasons why the figures would be too good, or invalid."""
    reasons = []
    if report["seconds"] <= 0:
        reasons.append("nothing was measured: the run ended within its warm-up")
    limit = report["settings"]["late_ms"]
    for name, what in (("late", "sending pings"), ("lag", "reading frames")):
        late = found[f"{name}_p99_ms"]
        if late is not None and late > limit:
            reasons.append(
                f"the load generator itself was too slow: {late:g} ms late at p99 with {what} (at most {limit:g}); "
                "give it more --workers, a larger machine, or ask for less"
            )
    totals = report["totals"]
    if totals["sent"] < totals["due"] * (1 - SLACK):
        reasons.append(f"only {totals['sent']} of {totals['due']} pings that were due were sent; the rest waits")
    if totals["gave_up"]:
        reasons.append(f"the server closed connections for good, by close code: {totals['gave_up']}")
    if not totals["due"]:
        reasons.append("not one ping was due: the stages are shorter than the time between two pings")
    elif not totals["acked"]:
        reasons.append("not one ping was acked")
    return reasons


def remarks(report: dict[str, Any], found: dict[str, float | None]) -> list[str]:
    """Returns notes for a reader of the figures; they do not fail the run."""
    notes = []
    if (report["server"] or {}).get("cpu") and (found.get("server_cores") or 0.0) < IDLE_CORES:
        notes.append(
            "the server was nearly idle: CPU per ping and per position contain what it uses without any load; "
            "compare them at a higher rate"
        )
    for name, count in (("ping", report["measured"]["sent"]), ("position", report["measured"]["positions"])):
        if 0 < count < ENOUGH:
            notes.append(f"CPU per {name} is left out: {count} are too few, {ENOUGH} are needed")
    few = [
        f"{name} {point}"
        for name in DELAYS
        if (count := report["delays"].get(name, {}).get("count"))
        for point, percent in POINTS.items()
        if count < needed(percent) and point in ("p50", "p99")
    ]
    if few:
        notes.append(f"left out for too few samples: {', '.join(few)}")
    if not report["verified"]:
        notes.append("what is stored and shown was not verified")
    return notes


def uneven(summaries: list[dict[str, Any]]) -> list[str]:
    """Returns the customers whose positions arrived much later than all customers' at the same time."""
    return [
        f"customer {one['customer']} saw positions {one['later_ms']} ms later than the median customer did at the same"
        f" time, in {one['seconds']} seconds (its own p50 {one['p50_ms']} ms), {example(one['latest'])};"
        f" expected less than {LATER_MS} ms"
        for one in summaries
        if one["seconds"] >= LONG and one["later_ms"] >= LATER_MS and one["mostly_later_ms"] >= LATER_MS / 2
    ]


def example(latest: dict[str, Any]) -> str:
    """Describes the position of a customer with the longest delay."""
    return (
        f"such as that of vendor {latest['vendor']} as of {time_of_day(latest['timestamp'])}, which came at"
        f" {time_of_day(latest['at'])}"
    )


def compared(check: dict[str, Any]) -> str:
    """Describes what a check compared; empty if it has no such data."""
    return ", ".join(f"{check[key]:,} {key}" for key in UNITS if key in check)


def staleness(one: dict[str, Any]) -> str:
    """Describes a freshness gap."""
    return (
        f"at {time_of_day(one['at'])} {one['customer']} saw vendor {one['vendor']} as of {time_of_day(one['shown'])};"
        f" expected {time_of_day(one['due'])} or later, {one['gap_ms']:.0f} ms before"
    )


def per_customer(summaries: list[dict[str, Any]], stalest: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns figures per customer: the distribution of medians, the slowest, and the largest freshness gaps."""
    enough = sorted((one for one in summaries if one["frames"] >= COMPARED), key=lambda one: float(one["p50_ms"]))
    at = max(0, -(-99 * len(enough) // 100) - 1)
    return {
        "timed": len(enough),
        "p50_p99_ms": enough[at]["p50_ms"] if enough else None,
        "slowest": enough[: -NAMED - 1 : -1],
        "stalest": sorted(stalest, key=lambda one: -float(one["gap_ms"]))[:NAMED],
    }


def rate(count: float, seconds: float) -> float | None:
    """Returns a rate per second."""
    return round(count / seconds, 3) if seconds else None


def micro(seconds: float, count: float) -> float | None:
    """Returns microseconds for one of `count`; None for too few."""
    return round(seconds / count * 1e6, 3) if count >= ENOUGH else None
