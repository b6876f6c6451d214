"""What a report's figures are, and whether it may be believed and has kept its promises. Pure."""

from __future__ import annotations

from typing import Any

SLACK = 0.01


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """The report with `figures`, `promises`, `reasons` and `ok` worked out from the rest of it."""
    found = figures(report)
    promises = kept(report["settings"]["promises"], found)
    reasons = [*report["failures"], *doubts(report, found)]
    reasons += [
        f"{name} differs: {check['differences']} times, first {check['shown'][0] if check['shown'] else 'unknown'}"
        for name, check in report["checks"].items()
        if not check["ok"]
    ]
    reasons += [
        f"the promise {one['name']} ≤ {one['limit']:g} was not kept: "
        + (f"{one['value']:g}" if one["value"] is not None else "it was not measured")
        for one in promises
        if not one["ok"]
    ]
    return report | {"figures": found, "promises": promises, "reasons": reasons, "ok": not reasons}


def figures(report: dict[str, Any]) -> dict[str, float | None]:
    """The numbers that are quoted, compared and promised; None where there is none."""
    seconds, counts, totals = report["seconds"], report["measured"], report["totals"]
    delays, server, own = report["delays"], report["server"], report["generator"]["cpu"]
    found: dict[str, float | None] = {
        "pings_per_s": over(counts["sent"], seconds),
        "acks_per_s": over(counts["acked"], seconds),
        "positions_per_s": over(counts["positions"], seconds),
        "frames_per_s": over(counts["frames"], seconds),
        "snapshots_per_s": over(counts["snapshots"], seconds),
        "update_mb_per_s": over(counts["update_bytes"] / 1e6, seconds),
    }
    for name in ("watch", "ack", "snapshot", "pan", "slow"):
        for percent in ("p50", "p90", "p99", "p999", "max"):
            found[f"{name}_{percent}_ms"] = delays.get(name, {}).get(f"{percent}_ms")
    found["late_p99_ms"] = delays.get("late", {}).get("p99_ms")
    found["lag_p99_ms"] = delays.get("lag", {}).get("p99_ms")
    found["lost"] = totals["unanswered"] + totals["dropped"] + lost_rows(report["checks"])
    found["rejected"] = sum(totals["rejected"].values())
    found["errors"] = sum(totals["errors"].values()) + sum(totals["closes"].values())
    if server is not None:
        cores = server["cpu"]["all"] / server["seconds"]
        found["server_cores"] = round(cores, 3)
        found["server_us_per_ping"] = micro(cores * seconds, counts["sent"])
        found["server_us_per_position"] = micro(cores * seconds, counts["positions"])
        found["server_mb"] = server["resident_mb"]["all"]
    coordinator = report["generator"]["coordinator_cpu"] / (seconds + report["warmup"]) if seconds else 0.0
    found["own_cores"] = round(sum(own.values()) / seconds + coordinator, 3) if seconds else None
    found["own_us_per_ping"] = micro(own.get("vendors", 0.0), counts["sent"])
    found["own_us_per_position"] = micro(own.get("customers", 0.0), counts["positions"])
    return found


def lost_rows(checks: dict[str, Any]) -> int:
    """How many acked pings the database does not hold as they were sent."""
    return int(checks["stored"]["differences"]) if "stored" in checks else 0


def doubts(report: dict[str, Any], found: dict[str, float | None]) -> list[str]:
    """Why these figures would flatter, or say nothing."""
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
    due, sent = report["totals"]["due"], report["totals"]["sent"]
    if sent < due * (1 - SLACK):
        reasons.append(f"only {sent} of {due} pings that were due were sent; the rest still waits for a connection")
    if report["totals"]["rejected"]:
        reasons.append(f"pings were rejected, by code: {report['totals']['rejected']}")
    if report["totals"]["gave_up"]:
        reasons.append(f"apps were told not to come back, by close code: {report['totals']['gave_up']}")
    if not due:
        reasons.append("not one ping was due: the stages are shorter than the vendors' gaps")
    elif not report["totals"]["acked"]:
        reasons.append("not one ping was acked")
    return reasons


def kept(promises: dict[str, float | None], found: dict[str, float | None]) -> list[dict[str, Any]]:
    """Each promise with what was measured."""
    figure = {"p99_ms": "watch_p99_ms"}
    made = []
    for name, limit in promises.items():
        if limit is not None:
            value = found.get(figure.get(name, name))
            made.append({"name": name, "limit": limit, "value": value, "ok": value is not None and value <= limit})
    return made


def over(count: float, seconds: float) -> float | None:
    """A rate."""
    return round(count / seconds, 3) if seconds else None


def micro(seconds: float, count: float) -> float | None:
    """Microseconds for one of `count`."""
    return round(seconds / count * 1e6, 3) if count else None
