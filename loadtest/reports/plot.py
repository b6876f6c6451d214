"""Line plots as SVG for one HTML file: no library, no network, colours from the page's style sheet. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import orjson

WIDTH, HEIGHT = 360.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 22.0, 30.0
TICKS = 4
FLATTENS = 3.0

Point = tuple[float, float | None]
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `points` by rising x, None leaves a gap; `colour` is 1 to 5; `dots` draws the points too, `bare` only
    them."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    dashed: bool = False
    dots: bool = False
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """A highlighted range of x, such as a warm-up or a stage."""

    begin: float
    end: float
    name: str
    shaded: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: `ticks` are x positions with names, otherwise chosen; `limit` is a threshold for y."""

    title: str
    lines: Sequence[Line]
    x_name: str
    unit: str
    bands: Sequence[Band] = ()
    ticks: Sequence[tuple[float, str]] = field(default=())
    limit: float | None = None
    note: str = ""
    x_span: tuple[float, float] | None = None


def nice(highest: float, count: int = TICKS) -> list[float]:
    """Returns round numbers from 0 to at least `highest`, in about `count` steps."""
    if not highest > 1e-300 or not math.isfinite(highest):
        return [0.0, 1.0]
    raw = highest / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def short(value: float) -> str:
    """Formats a number for an axis: 1.5 k, 20 M."""
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}" if abs(value) >= 0.001 or value == 0 else f"{value:.0e}"


def draw(plot: Plot) -> str:
    """Returns the plot as a `<figure>`; empty when there is nothing to draw."""
    values = [(x, y) for line in plot.lines for x, y in line.points if y is not None]
    if not values:
        return ""
    first, last = plot.x_span or (min(x for x, _ in values), max(x for x, _ in values))
    if last <= first:
        last = first + 1
    highest = max(y for _, y in values)
    # a limit far above the data would flatten it; then the legend names it alone
    limit = plot.limit if plot.limit is not None and plot.limit <= FLATTENS * highest else None
    rows = nice(max(highest, limit or 0.0))

    def across(x: float) -> float:
        return round(LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - y / rows[-1] * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(in_words(plot), quote=True)}"'
        f' data-plot="{escape(data(plot, across), quote=True)}">'
    ]
    for band in plot.bands:
        begin, end = across(max(first, band.begin)), across(min(last, band.end))
        if end <= begin:
            continue
        if band.shaded:
            parts.append(
                f'<rect class="band" x="{begin}" y="{TOP}" width="{end - begin:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
            )
        else:
            parts.append(f'<line class="stage" x1="{begin}" x2="{begin}" y1="{TOP - 8}" y2="{HEIGHT - BOTTOM}"/>')
        if end - begin > 7 * len(band.name):
            height = TOP + 10 if band.shaded else TOP - 3
            parts.append(f'<text class="name" x="{begin + 3}" y="{height}">{escape(band.name)}</text>')
    for row in rows:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(row)}" y2="{down(row)}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{down(row) + 3.5}" text-anchor="end">{short(row)}</text>')
    for at, name in plot.ticks or [(first + tick, short(first + tick)) for tick in nice(last - first)]:
        if first <= at <= last:
            anchor = "end" if across(at) > WIDTH - 24 else "middle"
            parts.append(
                f'<text class="tick" x="{across(at)}" y="{HEIGHT - BOTTOM + 13}" text-anchor="{anchor}">{name}</text>'
            )
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">'
        f"{escape(plot.x_name)}</text>"
    )
    if limit is not None:
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(limit)}" y2="{down(limit)}"/>')
    for line in plot.lines:
        parts += strokes(line, across, down)
    parts.append(f'<line class="cross" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>')
    legend = "".join(
        f'<span class="key"><i class="c{line.colour}{" dashed" if line.dashed else ""}"></i>{escape(line.name)}</span>'
        for line in plot.lines
    )
    if plot.limit is not None:
        legend += f'<span class="key"><i class="limit"></i>threshold {plot.limit:g} {escape(plot.unit)}</span>'
    note = f'<p class="note">{escape(plot.note)}</p>' if plot.note else ""
    return (
        f"<figure><figcaption>{escape(plot.title)} <small>{escape(plot.unit)}</small></figcaption>"
        f'<div class="legend">{legend}</div>{"".join(parts)}<output>&nbsp;</output>{note}</figure>'
    )


def strokes(line: Line, across: Scale, down: Scale) -> list[str]:
    """Returns a line's polylines, one between gaps, and its dots."""
    found, run = [], list[str]()
    for x, y in (*line.points, (0.0, None)):
        if y is not None:
            run.append(f"{across(x)},{down(y)}")
            continue
        if len(run) == 1:
            run.append(run[0])  # a single point shows only as a line with round ends
        if run and not line.bare:
            dashed = " dashed" if line.dashed else ""
            found.append(f'<polyline class="c{line.colour}{dashed}" points="{" ".join(run)}"/>')
        run = []
    if line.dots:
        found += [
            f'<circle class="c{line.colour}" cx="{across(x)}" cy="{down(y)}" r="3.5"/>'
            for x, y in line.points
            if y is not None
        ]
    return found


def in_words(plot: Plot) -> str:
    """Returns the plot in words, for screen readers."""
    words = []
    for line in plot.lines:
        values = [y for _, y in line.points if y is not None]
        if values:
            words.append(f"{line.name} from {min(values):.4g} to {max(values):.4g} {plot.unit}")
    return f"{plot.title}: {'; '.join(words)}"


def data(plot: Plot, across: Scale) -> str:
    """Returns the data for the page's script: x in the drawing, x in words, and each line's value."""
    names = dict(plot.ticks)
    xs = sorted({x for line in plot.lines for x, _ in line.points})
    values = [dict(line.points) for line in plot.lines]
    rows = [[across(x), names.get(x, short(round(x, 3))), *(of.get(x) for of in values)] for x in xs]
    return orjson.dumps(
        {"x": plot.x_name, "unit": plot.unit, "names": [line.name for line in plot.lines], "rows": rows}
    ).decode()
