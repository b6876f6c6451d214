"""A report in a few lines, for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

DELAYS = (
    ("watch", "ping → watcher"),
    ("ack", "ping → ack"),
    ("snapshot", "connect → snapshot"),
    ("pan", "pan → snapshot"),
    ("slow", "ping → slow phone"),
)


def summarise(report: dict[str, Any], console: Console) -> None:
    """Print what matters."""
    if report["kind"] == "find-max":
        search(report, console)
    else:
        one_run(report, console)


def one_run(report: dict[str, Any], console: Console) -> None:
    """What one run was like."""
    figures, totals = report["figures"], report["totals"]
    delays = Table("delay in ms", "p50", "p90", "p99", "p99.9", "max", "count", title=report["settings"]["title"])
    for column in delays.columns[1:]:
        column.justify = "right"
    for name, text in DELAYS:
        if found := report["delays"].get(name):
            values = [f"{found[f'{point}_ms']:,.1f}" for point in ("p50", "p90", "p99", "p999", "max")]
            delays.add_row(text, *values, f"{found['count']:,}")
    console.print(delays)
    lines = [
        f"{totals['sent']:,} pings sent, {totals['acked']:,} acked, {figures['lost']:,} lost,"
        f" {figures['rejected']:,} rejected; {figures['errors']:,} errors",
        f"{rate(figures['pings_per_s'])} pings/s, {rate(figures['positions_per_s'])} positions/s to watchers,"
        f" over {report['seconds']:.0f} s",
    ]
    if report["server"] is not None:
        lines.append(
            f"server: {figures['server_cores']} cores, {figures['server_us_per_ping']} µs per ping,"
            f" {figures['server_us_per_position']} µs per position, {figures['server_mb']:,} MB"
            f" (by its {report['server']['source']})"
        )
    lines.append(
        f"load generator: {figures['own_cores']} cores, {figures['own_us_per_ping']} µs per ping,"
        f" {figures['own_us_per_position']} µs per position, late by {figures['late_p99_ms']} ms at p99"
    )
    for line in lines:
        console.print(Text(line))
    for name, check in report["checks"].items():
        extra = ", ".join(f"{check[key]:,} {key}" for key in ("rows", "watchers", "cards") if key in check)
        said = "as it must be" if check["ok"] else f"{check['differences']} differences"
        console.print(Text(f"{name}: {said}{f' ({extra})' if extra else ''}", style="" if check["ok"] else "red"))
    for promise in report["promises"]:
        style = "green" if promise["ok"] else "red"
        console.print(Text(f"promise {promise['name']} ≤ {promise['limit']:g}: {promise['value']}", style=style))


def search(report: dict[str, Any], console: Console) -> None:
    """What a search found."""
    steps = Table("scale", "vendors", "customers", "pings/s", "positions/s", "watch p99", "ack p99", "cores", "")
    for column in steps.columns[:-1]:
        column.justify = "right"
    for step in sorted(report["steps"], key=lambda step: step["scale"]):
        figures = step["figures"]
        steps.add_row(
            f"{step['scale']:g}",
            f"{step['vendors']:,}",
            f"{step['customers']:,}",
            *(rate(figures[name]) for name in ("pings_per_s", "positions_per_s")),
            *(str(figures.get(name) or "-") for name in ("watch_p99_ms", "ack_p99_ms", "server_cores")),
            Text("kept" if step["ok"] else "broken", style="green" if step["ok"] else "red"),
        )
    console.print(steps)
    for step in report["steps"]:
        for reason in step["reasons"]:
            console.print(Text(f"{step['scale']:g} times: {reason}"))
    console.print(Text(report["said"], style="bold"))
    if report["knee"] is not None:
        knee = report["knee"]
        console.print(f"the knee is at {knee['scale']:g} times: p99 {knee['p99_ms']:g} ms, then {knee['then_ms']:g} ms")


def show_changes(report: dict[str, Any], console: Console) -> None:
    """Before and after, figure by figure."""
    table = Table(
        "figure", "before", "after", "change", "noise", "", title=f"{report['runs'][0]} and {report['runs'][1]} runs"
    )
    for column in table.columns[1:5]:
        column.justify = "right"
    styles = {"better": "green", "worse": "red", "noise": "yellow", "unknown": "yellow", "same": "dim"}
    for one in report["changes"]:
        table.add_row(
            one["name"],
            f"{one['before']:,.4g}",
            f"{one['after']:,.4g}",
            "-" if one["change"] is None else f"{one['change']:+.1%}",
            "unknown" if one["noise"] is None else f"±{one['noise']:.1%}",
            Text(one["verdict"], style=styles[one["verdict"]]),
        )
    console.print(table)
    for line in report["different"]:
        console.print(Text(f"the scenarios differ: {line}", style="yellow"))


def rate(value: float | None) -> str:
    """A rate as people read it."""
    return "-" if value is None else f"{value:,.0f}"
