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
    ("recovery", "cut → ready again"),
    ("freshness", "freshness gap"),
    ("alert", "ping → webhook"),
)
COMPARED = ("rows", "vendors", "watchers", "cards", "observations")


def summarise(report: dict[str, Any], console: Console) -> None:
    """Prints what matters."""
    if report["kind"] == "find-max":
        search(report, console)
    else:
        one_run(report, console)


def one_run(report: dict[str, Any], console: Console) -> None:
    """Prints one run."""
    figures, totals = report["figures"], report["totals"]
    delays = Table("delay in ms", "p50", "p90", "p99", "p99.9", "max", "count", title=report["settings"]["title"])
    for column in delays.columns[1:]:
        column.justify = "right"
    for name, text in DELAYS:
        if found := report["delays"].get(name):
            points = [found.get(f"{point}_ms") for point in ("p50", "p90", "p99", "p999", "max")]
            values = ["-" if value is None else f"{value:,.1f}" for value in points]
            delays.add_row(text, *values, f"{found['count']:,}")
    console.print(delays)
    lines = [
        f"{totals['sent']:,} pings sent, {totals['acked']:,} acked, {count(figures['lost'])} lost,"
        f" {figures['rejected']:,} rejected; {figures['errors']:,} errors and closes, {totals['refused']:,} refused",
        f"{rate(figures['pings_per_s'])} pings/s, {rate(figures['positions_per_s'])} positions/s to watchers,"
        f" over {report['seconds']:.0f} s",
    ]
    if report["server"] is not None:
        lines.append(
            f"server: {figures['server_cores']} cores, {cost(figures, 'server')}, {figures['server_mb']:,} MB"
            f" (by its {report['server']['source']})"
        )
    late = figures["late_p99_ms"] or 0.0
    lines.append(f"load generator: {figures['own_cores']} cores, {cost(figures, 'own')}, late by {late} ms at p99")
    if (bare := report.get("bare_copy")) is not None:
        lines.append(
            f"without the server: COPY {bare['rows_per_s']:,} rows/s (acks: {figures['acks_to_bare_copy']} of it),"
            f" a commit of one row {bare['commit_p50_ms']:g} ms at p50, {bare['commit_p99_ms']:g} ms at p99"
        )
    for line in lines:
        console.print(Text(line))
    for name, check in report["checks"].items():
        extra = ", ".join(f"{check[key]:,} {key}" for key in COMPARED if key in check)
        said = "no difference" if check["ok"] else f"{check['differences']} differences"
        console.print(Text(f"{name}: {said}{f' ({extra})' if extra else ''}", style="" if check["ok"] else "red"))
    for one in report["thresholds"]:
        style = {True: "green", False: "red", None: "dim"}[one["ok"]]
        console.print(Text(f"threshold {one['threshold']}: {one['said']}", style=style))
    for line in report["incidents"][:5] if figures["errors"] else []:
        console.print(Text(line, style="yellow"))
    for note in report["notes"]:
        console.print(Text(f"note: {note}", style="dim"))
    compared = report["compared"]
    console.print(
        f"verified: {compared['vendors']} of {compared['vendors_of']} vendors,"
        f" {compared['customers']} of {compared['customers_of']} customers"
    )
    passed = "PASSED: all thresholds and checks met" if report["ok"] else "FAILED"
    console.print(Text(passed, style="bold green" if report["ok"] else "bold red"))


def search(report: dict[str, Any], console: Console) -> None:
    """Prints a search for the highest load."""
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
            Text("kept" if step["ok"] else "not kept", style="green" if step["ok"] else "red"),
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
    """Prints before and after, figure by figure."""
    table = Table(
        "figure", "before", "after", "change", "noise", "", title=f"{report['runs'][0]} and {report['runs'][1]} runs"
    )
    for column in table.columns[1:5]:
        column.justify = "right"
    styles = {"better": "green", "worse": "red", "noise": "yellow", "unknown": "yellow", "same": "dim", "small": "dim"}
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
    for line in (*report["advice"], *(f"differs: {line}" for line in report["different"])):
        console.print(Text(line, style="yellow"))


def rate(value: float | None) -> str:
    """Returns a rate for people."""
    return "-" if value is None else f"{value:,.0f}"


def count(value: float | None) -> str:
    """Returns a count for people; `unknown` numbers are those that were not compared."""
    return "unknown" if value is None else f"{value:,}"


def cost(figures: dict[str, Any], of: str) -> str:
    """Returns CPU per ping and per position for people."""
    values = [figures.get(f"{of}_us_per_{what}") for what in ("ping", "position")]
    ping, position = ("-" if value is None else f"{value:g}" for value in values)
    return f"{ping} µs per ping, {position} µs per position"
