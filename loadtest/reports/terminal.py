"""A run on a terminal: a dashboard while it goes on, or a line every ten seconds; and its report in a few lines."""

from __future__ import annotations

import sys
from collections import Counter, deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.engine.scenario import Course
from loadtest.measure.recording import STEPS_PER_S, Timeline, percentile

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


BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 30
QUIET_EVERY = 10
ROWS = (
    ("watch", "ping → watcher"),
    ("ack", "ping → ack"),
    ("snapshot", "connect → snapshot"),
    ("pan", "pan → snapshot"),
)


class Dashboard:
    """A context manager; `show` draws what has been recorded. Silent with `quiet`."""

    def __init__(self, title: str, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._said = -float(QUIET_EVERY)
        self._note = ""
        self._past: dict[str, deque[float]] = {}
        self._seen = 0.0
        if not quiet and sys.stderr.isatty():
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Dashboard:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, record: Timeline, course: Course, note: str) -> None:
        """Draws the latest second, or prints a line."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(self.picture(record, course, note))
        elif note != self._note or record.reached - self._said >= QUIET_EVERY:
            self._said, self._note = record.reached, note
            self._console.print(self.line(record, course, note), soft_wrap=True)

    def line(self, record: Timeline, course: Course, note: str) -> str:
        """Returns what fits into a line."""
        counts, delays = record.latest.counts, record.latest.delays
        found = [f"{record.reached:.0f} of {course.total:.0f} s", note or course.leg(record.reached).stage.kind]
        if record.reached:
            found.append(f"{counts['sent']:,} pings/s, {counts['positions']:,} positions/s")
            found += [
                f"{text} p99 {value:.0f} ms"
                for name, text in ROWS[:2]
                if (value := in_ms(delays.get(name, {}), 99)) is not None
            ]
        return " · ".join(found)

    def picture(self, record: Timeline, course: Course, note: str) -> Panel:
        """Returns the whole dashboard."""
        latest = record.latest
        fresh, self._seen = record.reached > self._seen, record.reached
        counts = latest.counts
        leg = course.leg(record.reached)
        head = Text.assemble(
            (note or leg.stage.kind, "bold"),
            f"  {record.reached:.0f} of {course.total:.0f} s",
            ("  warm-up" if record.reached <= record.warmup else "", "yellow"),
            f"   {latest.working('vendors'):,} vendors  {latest.working('customers'):,} customers",
        )
        rates = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name, text in (
            ("sent", "pings/s"),
            ("acked", "acks/s"),
            ("positions", "positions/s"),
            ("snapshots", "snapshots/s"),
            ("faults", "errors and closes/s"),
        ):
            rates.add_row(text, Text(f"{counts[name]:,}", justify="right"), self._spark(name, counts[name], fresh))
        delays = Table("delay in ms", "p50", "p99", "max", "p99 over time", box=None, padding=(0, 2, 0, 0))
        for column in delays.columns[1:4]:
            column.justify = "right"
        for name, text in ROWS:
            steps = latest.delays.get(name, Counter())
            values = [in_ms(steps, percent) for percent in (50, 99, 100)]
            shown = ["-" if value is None else f"{value:,.1f}" for value in values]
            delays.add_row(text, *shown, self._spark(f"{name} p99", values[1] or 0.0, fresh))
        late = max(in_ms(latest.delays.get(name, {}), 99) or 0.0 for name in ("late", "lag"))
        foot = Text(f"load generator {sum(latest.own.values()):.2f} cores, late by {late:.1f} ms at p99")
        if late > 100:
            foot.stylize("red")
        if faults := sum(bucket.counts["faults"] for bucket in record.buckets):
            foot.append(f"   {faults:,} errors and closes so far", style="red")
        if record.usages and len(record.usages) > 1:
            first, last = record.usages[-2:]
            cores = (last.cpu["all"] - first.cpu["all"]) / max(0.1, last.at - first.at)
            foot.append(f"   server {cores:.2f} cores, {last.resident['all'] / 1e6:,.0f} MB", style="default")
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=course.total, completed=record.reached))
        return Panel(Group(head, bar, rates, delays, foot), title=self._title, title_align="left")

    def _spark(self, name: str, value: float, fresh: bool) -> Text:
        past = self._past.setdefault(name, deque(maxlen=WIDTH))
        if fresh:
            past.append(value)
        top = max(past, default=0.0) or 1.0
        return Text("".join(BLOCKS[min(7, int(8 * one / top))] for one in past), style="cyan")


def in_ms(steps: dict[int, int], percent: float) -> float | None:
    """Returns a percentile in ms, without a histogram: it is read every second."""
    step = percentile(steps, percent)
    return None if step is None else step * 1000 / STEPS_PER_S
