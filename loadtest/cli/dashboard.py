"""Shows a run on a terminal while it goes on; elsewhere, prints a line every ten seconds."""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.engine.stages import Course
from loadtest.measure.recorder import STEPS_PER_S, percentile
from loadtest.measure.timeline import Timeline

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            steps = latest.delays.get(name, {})
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
