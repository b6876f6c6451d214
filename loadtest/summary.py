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


def rate(value: float | None) -> str:
    """A rate as people read it."""
    return "-" if value is None else f"{value:,.0f}"
