"""Terminal output: a live dashboard or a line every ten seconds, and a short report."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.engine.scenario import Course
from loadtest.measure.recording import STEPS_PER_S, Timeline, percentile
from loadtest.reports.verdict import DELAYS, compared

POINTS = ("p50", "p90", "p99", "p999", "max")
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 30
QUIET_EVERY = 10
ROWS = ("watch", "ack", "snapshot", "pan")


def summarise(report: dict[str, Any], console: Console) -> None:
    """Prints a short report."""
    if report["kind"] == "find-max":
        search(report, console)
    else:
        one_run(report, console)


def one_run(report: dict[str, Any], console: Console) -> None:
    """Prints the report of one run."""
    figures, totals, verified = report["figures"], report["totals"], report["compared"]
    delays = numbers("delay in ms", "p50", "p90", "p99", "p99.9", "max", "count", title=report["settings"]["title"])
    for name, text in DELAYS.items():
        if found := report["delays"].get(name):
            delays.add_row(text, *(shown(found.get(f"{point}_ms"), ",.1f") for point in POINTS), f"{found['count']:,}")
    console.print(delays)

    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style=style))

    say(
        f"{totals['sent']:,} pings sent, {totals['acked']:,} acked, {shown(figures['lost'], ',', 'unknown')} lost,"
        f" {figures['rejected']:,} rejected; {figures['errors']:,} errors and closes, {totals['refused']:,} refused"
    )
    say(
        f"{shown(figures['pings_per_s'])} pings/s, {shown(figures['positions_per_s'])} positions/s to watchers,"
        f" over {report['seconds']:.0f} s"
    )
    if report["server"] is not None:
        say(
            f"server: {figures['server_cores']} cores, {cost(figures, 'server')}, {figures['server_mb']:,} MB"
            f" (by its {report['server']['source']})"
        )
    late = figures["late_p99_ms"] or 0.0
    say(f"load generator: {figures['own_cores']} cores, {cost(figures, 'own')}, late by {late} ms at p99")
    if (bare := report.get("bare_copy")) is not None:
        say(
            f"without the server: COPY {bare['rows_per_s']:,} rows/s (acks: {figures['acks_to_bare_copy']} of it),"
            f" a commit of one row {bare['commit_p50_ms']:g} ms at p50, {bare['commit_p99_ms']:g} ms at p99"
        )
    for name, check in report["checks"].items():
        said = "no difference" if check["ok"] else f"{check['differences']} differences"
        extra = f" ({compared(check)})" if compared(check) else ""
        say(f"{name}: {said}{extra}", "" if check["ok"] else "red")
    for one in report["thresholds"]:
        say(f"threshold {one['threshold']}: {one['said']}", {True: "green", False: "red", None: "dim"}[one["ok"]])
    for line in report["incidents"][:5] if figures["errors"] else []:
        say(line, "yellow")
    for note in report["notes"]:
        say(f"note: {note}", "dim")
    console.print(
        f"verified: {verified['vendors']} of {verified['vendors_of']} vendors,"
        f" {verified['customers']} of {verified['customers_of']} customers"
    )
    if report["ok"]:
        say("PASSED: all thresholds and checks met", "bold green")
    else:
        say("FAILED", "bold red")


def search(report: dict[str, Any], console: Console) -> None:
    """Prints the report of a search for the highest load."""
    heads = ("scale", "vendors", "customers", "pings/s", "positions/s", "watch p99", "ack p99", "cores", "")
    steps = numbers(*heads, names=0, words=1)
    for step in sorted(report["steps"], key=lambda step: step["scale"]):
        figures = step["figures"]
        steps.add_row(
            f"{step['scale']:g}",
            f"{step['vendors']:,}",
            f"{step['customers']:,}",
            *(shown(figures[name]) for name in ("pings_per_s", "positions_per_s")),
            *(str(figures.get(name) or "-") for name in ("watch_p99_ms", "ack_p99_ms", "server_cores")),
            Text("kept" if step["ok"] else "not kept", style="green" if step["ok"] else "red"),
        )
    console.print(steps)
    for step in report["steps"]:
        for reason in step["reasons"]:
            console.print(Text(f"{step['scale']:g} times: {reason}"))
    console.print(Text(report["said"], style="bold"))
    if (knee := report["knee"]) is not None:
        console.print(f"the knee is at {knee['scale']:g} times: p99 {knee['p99_ms']:g} ms, then {knee['then_ms']:g} ms")


def show_changes(report: dict[str, Any], console: Console) -> None:
    """Prints before and after, figure by figure."""
    title = f"{report['runs'][0]} and {report['runs'][1]} runs"
    table = numbers("figure", "before", "after", "change", "noise", "", words=1, title=title)
    styles = {"better": "green", "worse": "red", "noise": "yellow", "unknown": "yellow", "same": "dim", "small": "dim"}
    for one in report["changes"]:
        table.add_row(
            one["name"],
            *(f"{one[side]:,.4g}" for side in ("before", "after")),
            shown(one["change"], "+.1%"),
            "unknown" if one["noise"] is None else f"±{one['noise']:.1%}",
            Text(one["verdict"], style=styles[one["verdict"]]),
        )
    console.print(table)
    for line in (*report["advice"], *(f"differs: {line}" for line in report["different"])):
        console.print(Text(line, style="yellow"))


def numbers(*heads: str, names: int = 1, words: int = 0, **options: Any) -> Table:
    """Returns a table of numbers: all columns but the first `names` and the last `words` are flush right."""
    table = Table(*heads, **options)
    for column in table.columns[names : len(heads) - words]:
        column.justify = "right"
    return table


def shown(value: float | None, form: str = ",.0f", unknown: str = "-") -> str:
    """Formats a number."""
    return unknown if value is None else format(value, form)


def cost(figures: dict[str, Any], of: str) -> str:
    """Formats the CPU time per ping and per position."""
    ping, position = (shown(figures.get(f"{of}_us_per_{what}"), "g") for what in ("ping", "position"))
    return f"{ping} µs per ping, {position} µs per position"


class Dashboard:
    """A live dashboard, a context manager; `show` draws the recorded figures. Silent with `quiet`."""

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
        """Returns the summary of one line."""
        counts, delays = record.latest.counts, record.latest.delays
        found = [f"{record.reached:.0f} of {course.total:.0f} s", note or course.leg(record.reached).stage.kind]
        if record.reached:
            found.append(f"{counts['sent']:,} pings/s, {counts['positions']:,} positions/s")
            found += [
                f"{DELAYS[name]} p99 {value:.0f} ms"
                for name in ROWS[:2]
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
        heads = ("delay in ms", "p50", "p99", "max", "p99 over time")
        delays = numbers(*heads, words=1, box=None, padding=(0, 2, 0, 0))
        for name in ROWS:
            values = [in_ms(latest.delays.get(name, {}), percent) for percent in (50, 99, 100)]
            past = self._spark(f"{name} p99", values[1] or 0.0, fresh)
            delays.add_row(DELAYS[name], *(shown(value, ",.1f") for value in values), past)
        late = max(in_ms(latest.delays.get(name, {}), 99) or 0.0 for name in ("late", "lag"))
        foot = Text(f"load generator {sum(latest.own.values()):.2f} cores, late by {late:.1f} ms at p99")
        if late > 100:
            foot.stylize("red")
        if faults := sum(bucket.counts["faults"] for bucket in record.buckets):
            foot.append(f"   {faults:,} errors and closes so far", style="red")
        if record.usages and len(record.usages) > 1:
            first, last = record.usages[-2:]
            cores = last.since(first)["all"] / max(0.1, last.at - first.at)
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


def in_ms(steps: Mapping[int, int], percent: float) -> float | None:
    """Returns a percentile in ms; without a histogram, as it is called every second."""
    step = percentile(steps, percent)
    return None if step is None else step * 1000 / STEPS_PER_S
