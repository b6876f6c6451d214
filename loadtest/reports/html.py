"""A report as one HTML file: readable on a phone, in light and dark mode, without a network. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from loadtest.measure.recording import Histogram
from loadtest.reports.plot import Band, Line, Plot, draw
from loadtest.reports.verdict import DELAYS, compared, staleness

Report = dict[str, Any]

NAMES = {name: text.capitalize() for name, text in DELAYS.items()}
NAMES |= {"late": "Generator: pings sent late", "lag": "Generator: frames read late"}
NINES = ((50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999"))
PARTS = ("all", "server", "postgres", "redis")
DELAY_NOTES = {
    "watch": "From when a ping was due until a customer's app had it, for those that arrived in that second.",
    "ack": "From when a ping was due until the server acknowledged that it is stored.",
    "freshness": "How old the position is that sampled customers see, beyond the newest one; weighted by time.",
}
CHECKS = {
    "stored": "Every acked ping is stored exactly once, as it was sent",
    "positions": "vendors.lat and long are the newest fix",
    "views": "At the end, the views of sampled customers are exact, vendor for vendor",
    "live views": "During the run, the views of sampled customers were correct",
    "alerts": "Every crossing of an alert's edge caused one signed webhook, in time",
    "counts": "Counts of a zoomed-out map equal a fresh snapshot",
    "even": "No customer is served much later than the others",
    "protocol": "Every message follows the protocol",
}
TOTALS = {
    "sent": "pings sent",
    "acked": "pings acked",
    "resent": "sent again after a reconnect",
    "backlog": "collected without a network",
    "unanswered": "never answered",
    "dropped": "dropped by a full outbox",
    "connections": "connections",
    "refused": "connections refused by admission control",
    "positions": "positions to watchers",
    "frames": "frames with them",
    "snapshots": "snapshots",
    "pans": "pans",
    "follows": "follows",
    "sleeps": "phones put away",
    "losses": "networks lost",
    "cuts": "connections cut by storms",
    "rejected": "rejected pings",
    "errors": "errors",
    "closes": "closes by code",
    "gave_up": "gave up",
}
TILES = {
    "watch_p99_ms": ("ping → watcher, p99", "ms"),
    "ack_p99_ms": ("ping → ack, p99", "ms"),
    "snapshot_p99_ms": ("connect → snapshot, p99", "ms"),
    "pings_per_s": ("pings a second", ""),
    "positions_per_s": ("positions a second to watchers", ""),
    "freshness_max_ms": ("freshness gap, longest", "ms"),
    "lost": ("pings lost", ""),
    "errors": ("errors and closes", ""),
    "server_cores": ("CPU cores of the server", ""),
    "server_us_per_position": ("server CPU per position", "µs"),
    "server_mb": ("server memory, highest", "MB"),
}
COST = {
    "own_cores": ("cores", ""),
    "own_us_per_ping": ("CPU per ping", "µs"),
    "own_us_per_position": ("CPU per received position", "µs"),
    "late_p99_ms": ("pings sent late, p99", "ms"),
    "lag_p99_ms": ("frames read late, p99", "ms"),
}

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")


def page(report: Report, refresh: int | None = None) -> str:
    """Returns the whole page; the page of a running load test reloads itself every `refresh` seconds."""
    parts = {"find-max": found_maximum, "compare": comparison}.get(report["kind"], one_run)(report)
    title = escape(report.get("settings", {}).get("title", "Comparison"))
    reload = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{reload}'
        f"<title>{title}: load test</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def one_run(report: Report) -> Iterable[str]:
    """Yields the page of one run, or of the merged run of several machines."""
    yield heading(report)
    yield verdict(report)
    yield from details(report)


def details(report: Report) -> Iterable[str]:
    """Yields a run's sections below its verdict."""
    figures, own = report["figures"], report["generator"]
    tiles = [(number(figures[name], unit), text) for name, (text, unit) in TILES.items() if name in figures]
    yield f'<div class="tiles">{"".join(f"<div class=tile><b>{v}</b><span>{n}</span></div>" for v, n in tiles)}</div>'
    yield f'<h2>Over time</h2><div class="plots">{"".join(draw(plot) for plot in over_time(report))}</div>'
    points = ("p50", "p90", "p99", "p999", "max")
    delays = [
        [text, *(number(found.get(f"{point}_ms")) for point in points), number(found["count"])]
        for name, text in NAMES.items()
        if (found := report["delays"].get(name)) and found["count"]
    ]
    shown = table(["ms", "p50", "p90", "p99", "p99.9", "max", "count"], delays)
    yield f'<h2>Latency by percentile</h2><div class="plots">{draw(percentiles(report))}{card(shown)}</div>'
    limits = [
        [escape(one["threshold"]), escape(one["said"]), yes(one["ok"], "kept", "not kept")]
        for one in report["thresholds"]
    ]
    yield f"<h2>Thresholds</h2>{card(table(['threshold', 'measured', ''], limits) + listed(report['notes']))}"
    yield verification(report)
    if slowest := report["customers"]["slowest"]:
        names = ("customer", "p50_ms", "p90_ms", "later_ms", "frames")
        rows = [[number(one[name]) for name in names] for one in slowest]
        found = table(["customer", "p50 ms", "p90 ms", "later than the median", "frames"], rows)
        highest = number(report["customers"]["p50_p99_ms"], "ms")
        note = f"99 % of {report['customers']['timed']:,} customers had a median of at most {highest}."
        yield f"<h2>Slowest customers</h2>{card(f'{found}<p class=note>{note}</p>')}"
    if stalest := report["customers"]["stalest"]:
        yield f"<h2>Largest freshness gaps</h2>{card(listed(staleness(one) for one in stalest))}"
    yield f"<h2>Totals</h2>{card(pairs((text, total(report['totals'][name])) for name, text in TOTALS.items()))}"
    costs = [(text, number(figures[name], unit)) for name, (text, unit) in COST.items()]
    clock = f"{own['clock_offset_ms']:g} ms ±{own['clock_error_ms']:g}"
    costs += [("processes", number(report["workers"])), ("clock against the server's", clock)]
    yield f"<h2>The load generator itself</h2>{card(pairs(costs))}"
    for title, values in (("The scenario in full", report["settings"]), ("Environment", report["environment"])):
        rows_ = pairs((name, escape(value)) for name, value in flat(values) if name not in ("title", "about"))
        yield f"<details><summary>{title}</summary>{card(rows_)}</details>"


def found_maximum(report: Report) -> Iterable[str]:
    """Yields the page of a search for the highest load."""
    yield heading(report)
    yield verdict(report)
    yield f'<div class="plots">{"".join(draw(plot) for plot in knee(report))}</div>'
    names = ("pings_per_s", "positions_per_s", "watch_p99_ms", "ack_p99_ms", "server_cores")
    rows = [
        [
            f"{step['scale']:.3g}&nbsp;times",
            *(number(step[name]) for name in ("vendors", "customers")),
            *(number(step["figures"].get(name)) for name in names),
            yes(step["ok"], "kept", escape("; ".join(step["reasons"])[:160])),
        ]
        for step in report["steps"]
    ]
    heads = ["scale", "vendors", "customers", "pings/s", "positions/s", "watch p99", "ack p99", "cores", ""]
    yield f"<h2>Steps</h2>{card(table(heads, rows))}"
    if (best := report["best"]) is not None:
        yield "<hr><h2>The highest load that kept its thresholds</h2>"
        yield f'<p class="soft">{escape(circumstances(best))}</p>'
        yield from details(best)


def comparison(report: Report) -> Iterable[str]:
    """Yields two runs side by side."""
    classes = {"better": "yes", "worse": "no"}
    rows = [
        [
            escape(one["name"]),
            number(one["before"]),
            number(one["after"]),
            "-" if one["change"] is None else f"{one['change']:+.1%}",
            "unknown" if one["noise"] is None else f"±{one['noise']:.1%}",
            f'<span class="{classes.get(one["verdict"], "soft")}">{one["verdict"]}</span>',
        ]
        for one in report["changes"]
    ]
    reasons = [*report["reasons"], *report["advice"], *(f"differs: {line}" for line in report["different"])]
    said = "Nothing got worse" if report["ok"] else "Worse"
    yield f"<h1>Comparison</h1><p class=soft>{report['runs'][0]} and {report['runs'][1]} runs</p>"
    yield f'<div class="verdict {"ok" if report["ok"] else "bad"}"><b>{said}.</b>{listed(reasons)}</div>'
    yield card(table(["figure", "before", "after", "change", "noise", ""], rows))
    before, after = report["series"]
    yield '<div class="plots">'
    for name in ("watch", "ack"):
        lines = [delay_line(before, name, "p99", "before", 1), delay_line(after, name, "p99", "after", 2)]
        yield draw(Plot(NAMES[name], lines, "seconds", "ms", note="p99"))
    yield "</div>"


def heading(report: Report) -> str:
    """Returns the heading: what was run, where and when."""
    settings = report["settings"]
    return (
        f'<h1>{escape(settings["title"])}</h1><p class="soft">{escape(settings["about"])}</p>'
        f'<p class="soft">{escape(circumstances(report))}</p>'
    )


def circumstances(report: Report) -> str:
    """Returns one line on where, when and how long a run was made."""
    found = [f"{report['target']}, {report['started'][:19].replace('T', ' ')} UTC"]
    if report["kind"] != "find-max":
        warmup = f"(warm-up {report['warmup']:g} s left out)"
        found.append(f"{report['seconds']:g} s measured of {report['planned_seconds']:g} s {warmup}")
        found.append(f"{report['machines']} load machine{'s' if report['machines'] > 1 else ''}")
        found += [f"driven by {report['trace']}"] if report["trace"] else []
        found += [f"{name}: {value}" for name, value in report["tags"].items()]
    return " · ".join(found)


def verdict(report: Report) -> str:
    """Returns whether the run passed, and all reasons if it failed."""
    said = "Failed"
    if report["kind"] == "find-max":
        said = report["said"]
    elif report["ok"]:
        verified = "" if report["verified"] else " (stored rows and views not verified)"
        said = f"Passed: all thresholds and checks met{verified}"
    said += "; stopped early" if report.get("interrupted") else ""
    reasons = listed(report["reasons"])
    return f'<div class="verdict {"ok" if report["ok"] else "bad"}"><b>{escape(said)}.</b>{reasons}</div>'


def verification(report: Report) -> str:
    """Returns the results of the verification, and errors and closes."""
    rows = []
    for name, check in report["checks"].items():
        said = compared(check)
        text = CHECKS.get(name, escape(name)) + (f"<br><small>{said} compared</small>" if said else "")
        rows.append([text, yes(check["ok"], "yes", f"{check['differences']:,} differences")])
    lines = [line for check in report["checks"].values() for line in check["shown"]]
    return f"<h2>Verification</h2>{card(table(['', ''], rows) + listed([*lines, *report['incidents']]))}"


def over_time(report: Report) -> Iterable[Plot]:
    """Yields the plots over time: delays, rates, apps, CPU and memory."""
    series = report["series"]
    bands = [Band(0, report["warmup"], "warm-up", shaded=True)] if report["warmup"] else []
    bands += [Band(leg["t"], leg["t"] + leg["seconds"], leg["kind"]) for leg in report["timeline"]]
    span = (0.0, max([entry["t"] + entry["seconds"] for entry in series], default=1.0))
    limits = {one["name"]: one["limit"] for one in report["thresholds"]}

    def plot(title: str, lines: Sequence[Line], unit: str, note: str, limit: float | None = None) -> Plot:
        return Plot(title, lines, "seconds", unit, bands, limit=limit, note=note, x_span=span)

    def line(text: str, colour: int, value: Callable[[Report], float | None], dashed: bool = False) -> Line:
        return Line(text, [(middle(entry), value(entry)) for entry in series], colour, dashed)

    def rate(name: str, text: str, colour: int) -> Line:
        return line(text, colour, lambda entry: entry["counts"].get(name, 0) / entry["seconds"])

    def used(key: str, name: str) -> Line:
        text = "total" if name == "all" else name
        return line(text, 1 + PARTS.index(name), lambda entry: entry.get("server", {}).get(key, {}).get(name))

    for name, note in DELAY_NOTES.items():
        lines = [delay_line(series, name, "p50", "p50", 1, True)]
        lines += [delay_line(series, name, point, point, hue) for point, hue in (("p90", 3), ("p99", 2))]
        yield plot(NAMES[name], lines, "ms", note, limits.get(f"{name}_p99_ms"))
    yield plot(
        "Pings", [rate("sent", "sent", 1), rate("acked", "acked", 2)], "a second", "Acked below sent: pings are queued."
    )
    yield plot(
        "Positions to watchers",
        [rate("positions", "positions", 1), rate("snapshot_positions", "in snapshots", 4)],
        "a second",
        "Several of one vendor may be merged into the newest, so fewer do not mean lost ones.",
    )
    if any(entry["counts"].get("faults") for entry in series):
        faults = [rate("faults", "errors, closes, violations", 5)]
        yield plot("Errors and closes", faults, "a second", "Those that the load generator did not cause.")
    apps = [line("vendors", 1, lambda entry: entry["vendors"]), line("customers", 2, lambda entry: entry["customers"])]
    yield plot("Apps", apps, "apps", "Those asleep or offline are counted too.")
    named = [name for name in PARTS if any(name in entry.get("server", {}).get("cores", {}) for entry in series)]
    named = named[1:] if len(named) == 2 else named
    for title, key, unit, note in (
        ("CPU", "cores", "cores", f"From the server's {(report['server'] or {}).get('source', 'processes')}."),
        ("Memory", "resident_mb", "MB", "Resident; pages that PostgreSQL's processes share count in each of them."),
    ):
        lines = [used(key, name) for name in named]
        if lines and key == "cores":
            lines.append(line("load generator", 5, lambda entry: entry["own_cpu"] / entry["seconds"], True))
        yield plot(title, lines, unit, note)


def delay_line(series: Sequence[Report], name: str, point: str, text: str, hue: int, dashed: bool = False) -> Line:
    """Returns a percentile of one delay over time."""
    points = [(middle(entry), entry["delays"].get(name, {}).get(f"{point}_ms")) for entry in series]
    return Line(text, points, hue, dashed)


def middle(entry: Report) -> float:
    """Returns the x position of a bucket."""
    return float(entry["t"] + entry["seconds"] / 2)


def percentiles(report: Report) -> Plot:
    """Returns the plot of delay against percentile; each nine has the same width."""
    lines = []
    for colour, name in enumerate(("watch", "ack", "snapshot", "pan"), 1):
        found = report["delays"].get(name)
        if not found or not found["count"]:
            continue
        histogram = Histogram()
        histogram.add(found["hdr"])
        most = 100 * (1 - 1 / found["count"])
        points = [percent for step in range(41) if (percent := 100 * (1 - 10 ** (-step / 8))) <= most]
        values = histogram.curve(points)
        lines.append(Line(NAMES[name], [(nines(p), v) for p, v in zip(points, values, strict=True)], colour))
    return Plot(
        "Latency by percentile",
        lines,
        "percentile",
        "ms",
        ticks=[(nines(percent), text) for percent, text in NINES],
        note="Drawn as far to the right as there were enough samples.",
        x_span=(0.0, max([x for line in lines for x, _ in line.points], default=3.0) or 3.0),
    )


def nines(percent: float) -> float:
    """Returns how many nines a percentile has: 90 is 1, 99 is 2."""
    return -math.log10(max(1e-9, 1 - percent / 100))


def knee(report: Report) -> Iterable[Plot]:
    """Yields delay and cost against the offered load, as the delivered load falls under overload."""
    steps = sorted(report["steps"], key=lambda step: float(step["scale"]))
    limits = {one["name"]: one["limit"] for step in steps[:1] for one in step["thresholds"]}
    watched = any(step["figures"].get("watch_p99_ms") is not None for step in steps)
    slow = "watch" if watched else "ack"
    vendors, customers = report["settings"]["vendors"]["count"], report["settings"]["customers"]["count"]
    span = (0.0, max([step["scale"] for step in steps], default=1.0))
    marks = [Band(report["knee"]["scale"], span[1], "knee")] if report["knee"] is not None else []

    def against(name: str, colour: int, text: str, ok: bool | None = None) -> Line:
        points = [(step["scale"], step["figures"].get(name)) for step in steps if ok is None or step["ok"] == ok]
        return Line(text, points, colour, dots=True, bare=ok is False)

    def plot(title: str, lines: Sequence[Line], unit: str, note: str = "", limit: float | None = None) -> Plot:
        load = f"times {vendors:,} vendors and {customers:,} customers"
        return Plot(title, lines, load, unit, marks, limit=limit, note=note, x_span=span)

    figure = f"{slow}_p99_ms"
    delays = [against(figure, 1, "thresholds kept", True), against(figure, 5, "broken", False)]
    note = "At the knee, more load begins to cost much more delay."
    yield plot(f"{NAMES[slow]}, p99, against load", delays, "ms", note, limits.get(figure))
    yield plot(
        "CPU against load", [against("server_cores", 1, "server"), against("own_cores", 2, "load generator")], "cores"
    )
    note = "Where this stops growing, positions are merged or late."
    yield plot("Delivered against load", [against("positions_per_s", 1, "positions to watchers")], "a second", note)


def flat(found: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yields dotted names and values."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(found, list) and found and isinstance(found[0], dict):
        for place, value in enumerate(found):
            yield from flat(value, f"{prefix}.{place}")
    elif found is not None:
        yield prefix, str(found)


def number(value: float | None, unit: str = "") -> str:
    """Formats a number; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 1000 or float(value).is_integer():
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    return f"{text} <small>{unit}</small>" if unit else text


def total(value: int | dict[str, int]) -> str:
    """Returns a count, or counts by name."""
    if isinstance(value, int):
        return number(value)
    return ", ".join(f"{escape(name)}: {count:,}" for name, count in sorted(value.items())) or "none"


def yes(ok: bool | None, good: str, bad: str) -> str:
    """Returns yes or no in its colour."""
    return "not measured" if ok is None else f'<span class="{"yes" if ok else "no"}">{good if ok else bad}</span>'


def card(inside: str) -> str:
    """Returns a card around HTML."""
    return f'<div class="card wide">{inside}</div>'


def listed(lines: Iterable[str]) -> str:
    """Returns lines of text as a list; empty if there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Returns names and values; the values are HTML."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{value}</dd>' for name, value in rows)}</dl>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; all cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
