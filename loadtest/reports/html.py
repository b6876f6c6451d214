"""A report as one HTML file: readable on a phone, in light and dark mode, without a network. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from loadtest.measure.histogram import Histogram
from loadtest.reports.plot import Band, Line, Plot, draw

NAMES = {
    "watch": "Ping → watcher",
    "ack": "Ping → ack",
    "snapshot": "Connect → snapshot",
    "pan": "Pan → snapshot",
    "slow": "Ping → slow phone",
    "recovery": "Cut → ready again",
    "freshness": "Freshness gap",
    "late": "Generator: pings sent late",
    "lag": "Generator: frames read late",
}
NINES = ((50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999"))
PARTS = ("all", "server", "postgres", "redis")

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")

SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")


def page(report: dict[str, Any], refresh: int | None = None) -> str:
    """Returns the whole page; a run that is still under way reloads itself every `refresh` seconds."""
    if report["kind"] == "compare":
        body, title = comparison(report), "Comparison"
    else:
        body = found_maximum(report) if report["kind"] == "find-max" else one_run(report)
        title = escape(report["settings"]["title"])
    reload = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{reload}'
        f"<title>{title}: load test</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def one_run(report: dict[str, Any]) -> str:
    """Returns the page of one run, or of the merged run of several machines."""
    return heading(report) + verdict(report) + details(report)


def details(report: dict[str, Any]) -> str:
    """Returns all of a run below its verdict."""
    return "".join(
        (
            tiles(report),
            f'<h2>Over time</h2><div class="plots">{"".join(draw(plot) for plot in over_time(report))}</div>',
            "<h2>Latency by percentile</h2>",
            f'<div class="plots">{draw(percentiles(report))}<div class="card wide">{delay_table(report)}</div></div>',
            thresholds(report),
            checks(report),
            customers(report),
            f'<h2>Totals</h2><div class="card">{pairs(totals(report))}</div>',
            f'<h2>The load generator itself</h2><div class="card">{pairs(generator(report))}</div>',
            settings(report),
            environment(report),
        )
    )


def found_maximum(report: dict[str, Any]) -> str:
    """Returns the page of a search for the highest load."""
    best = report["best"]
    inside = f'<p class="soft">{escape(settings_line(best))}</p>{details(best)}' if best is not None else ""
    return "".join(
        (
            heading(report),
            verdict(report),
            f'<div class="plots">{"".join(draw(plot) for plot in knee(report))}</div>',
            f'<h2>Steps</h2><div class="card wide">{step_table(report)}</div>',
            f"<hr><h2>The highest load that kept its thresholds</h2>{inside}" if inside else "",
        )
    )


def heading(report: dict[str, Any]) -> str:
    """Returns what was run, where and when."""
    return (
        f"<h1>{escape(report['settings']['title'])}</h1>"
        f'<p class="soft">{escape(report["settings"]["about"])}</p>'
        f'<p class="soft">{escape(settings_line(report))}</p>'
    )


def settings_line(report: dict[str, Any]) -> str:
    """Returns one line on the circumstances."""
    found = [f"{report['target']}, {report['started'][:19].replace('T', ' ')} UTC"]
    if report["kind"] != "find-max":
        found.append(
            f"{report['seconds']:g} s measured of {report['planned_seconds']:g} s"
            f" (warm-up {report['warmup']:g} s left out)"
        )
        found.append(f"{report['machines']} load machine{'s' if report['machines'] > 1 else ''}")
        if report["trace"]:
            found.append(f"driven by {report['trace']}")
        found += [f"{name}: {value}" for name, value in report["tags"].items()]
    return " · ".join(found)


def verdict(report: dict[str, Any]) -> str:
    """Returns whether the run passed, and every reason why not."""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report["reasons"])
    if report["kind"] == "find-max":
        said = report["said"]
    elif report["ok"]:
        said = "Passed: all thresholds and checks met"
        said += "" if report["verified"] else " (stored rows and views not verified)"
    else:
        said = "Failed"
    if report.get("interrupted"):
        said += "; stopped early"
    return (
        f'<div class="verdict {"ok" if report["ok"] else "bad"}"><b>{escape(said)}.</b>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div>"
    )


def tiles(report: dict[str, Any]) -> str:
    """Returns the most wanted figures."""
    figures = report["figures"]
    shown = [
        (number(figures["watch_p99_ms"], "ms"), "ping → watcher, p99"),
        (number(figures["ack_p99_ms"], "ms"), "ping → ack, p99"),
        (number(figures["snapshot_p99_ms"], "ms"), "connect → snapshot, p99"),
        (number(figures["pings_per_s"]), "pings a second"),
        (number(figures["positions_per_s"]), "positions a second to watchers"),
        (number(figures["freshness_max_ms"], "ms"), "freshness gap, longest"),
        (number(figures["lost"]), "pings lost"),
        (number(figures["errors"]), "errors and closes"),
    ]
    if report["server"] is not None:
        shown += [
            (number(figures["server_cores"]), "CPU cores of the server"),
            (number(figures["server_us_per_position"], "µs"), "server CPU per position"),
            (number(figures["server_mb"], "MB"), "server memory, highest"),
        ]
    each = "".join(f"<div class=tile><b>{value}</b><span>{name}</span></div>" for value, name in shown)
    return f'<div class="tiles">{each}</div>'


def bands(report: dict[str, Any]) -> list[Band]:
    """Returns the stages and the warm-up."""
    found = [Band(0, report["warmup"], "warm-up", shaded=True)] if report["warmup"] else []
    return found + [Band(leg["t"], leg["t"] + leg["seconds"], leg["kind"]) for leg in report["timeline"]]


def over_time(report: dict[str, Any]) -> Iterable[Plot]:
    """Yields the plots over time: delays, rates, apps, CPU and memory."""
    series, stages = report["series"], bands(report)
    span = (0.0, max([entry["t"] + entry["seconds"] for entry in series], default=1.0))
    limits = {one["name"]: one["limit"] for one in report["thresholds"]}

    def delays(name: str, colour: int) -> list[Line]:
        return [
            Line(
                point,
                [(middle(entry), entry["delays"].get(name, {}).get(f"{key}_ms")) for entry in series],
                hue,
                dashed,
            )
            for point, key, hue, dashed in (
                ("p50", "p50", colour, True),
                ("p90", "p90", 3, False),
                ("p99", "p99", 2, False),
            )
        ]

    def rates(*names: tuple[str, str, int]) -> list[Line]:
        return [
            Line(text, [(middle(entry), entry["counts"].get(name, 0) / entry["seconds"]) for entry in series], colour)
            for name, text, colour in names
        ]

    def plot(title: str, lines: Sequence[Line], unit: str, note: str, limit: float | None = None) -> Plot:
        return Plot(title, lines, "seconds", unit, stages, limit=limit, note=note, x_span=span)

    yield plot(
        "Ping → watcher",
        delays("watch", 1),
        "ms",
        "From when a ping was due until a customer's app had it, for those that arrived in that second.",
        limits.get("watch_p99_ms"),
    )
    yield plot(
        "Ping → ack",
        delays("ack", 1),
        "ms",
        "From when a ping was due until the server acknowledged that it is stored.",
        limits.get("ack_p99_ms"),
    )
    if any("freshness" in entry["delays"] for entry in series):
        yield plot(
            "Freshness gap",
            delays("freshness", 1),
            "ms",
            "How old the position is that sampled customers see, beyond the newest one; weighted by time.",
        )
    yield plot(
        "Pings", rates(("sent", "sent", 1), ("acked", "acked", 2)), "a second", "Acked below sent: pings are queued."
    )
    yield plot(
        "Positions to watchers",
        rates(("positions", "positions", 1), ("snapshot_positions", "in snapshots", 4)),
        "a second",
        "Several of one vendor may be merged into the newest, so fewer do not mean lost ones.",
    )
    if any(entry["counts"].get("faults") for entry in series):
        yield plot(
            "Errors and closes",
            rates(("faults", "errors, refusals, closes", 5)),
            "a second",
            "Those that the load generator did not cause.",
        )
    yield plot(
        "Apps",
        [
            Line(name, [(middle(entry), float(entry[name])) for entry in series], colour)
            for name, colour in (("vendors", 1), ("customers", 2))
        ],
        "apps",
        "Those asleep or offline are counted too.",
    )
    with_server = [entry for entry in series if "server" in entry]
    if with_server:
        named = [name for name in PARTS if any(name in entry["server"]["cores"] for entry in with_server)]
        if len(named) == 2:
            named = named[1:]
        yield plot(
            "CPU",
            [
                *(
                    Line(
                        "total" if name == "all" else name,
                        [(middle(entry), entry["server"]["cores"].get(name)) for entry in with_server],
                        1 + PARTS.index(name),
                    )
                    for name in named
                ),
                Line(
                    "load generator",
                    [(middle(entry), entry["own_cpu"] / entry["seconds"]) for entry in series],
                    5,
                    True,
                ),
            ],
            "cores",
            f"From the server's {report['server']['source'] if report['server'] else 'processes'}.",
        )
        yield plot(
            "Memory",
            [
                Line(
                    "total" if name == "all" else name,
                    [(middle(entry), entry["server"]["resident_mb"].get(name)) for entry in with_server],
                    1 + PARTS.index(name),
                )
                for name in named
            ],
            "MB",
            "Resident; pages that PostgreSQL's processes share count in each of them.",
        )


def middle(entry: dict[str, Any]) -> float:
    """Returns where a bucket is drawn."""
    return float(entry["t"] + entry["seconds"] / 2)


def percentiles(report: dict[str, Any]) -> Plot:
    """Returns the plot of delay against percentile, each nine as wide as the one before."""
    lines = []
    for colour, name in enumerate(("watch", "ack", "snapshot", "pan"), 1):
        found = report["delays"].get(name)
        if not found or not found["count"]:
            continue
        histogram = Histogram()
        histogram.add(found["hdr"])
        most = 100 * (1 - 1 / found["count"]) if found["count"] > 1 else 0.0
        points = [percent for step in range(41) if (percent := 100 * (1 - 10 ** (-step / 8))) <= most]
        values = histogram.curve(points)
        lines.append(Line(NAMES[name], [(nines(p), v) for p, v in zip(points, values, strict=True)], colour))
    ticks = [(nines(percent), text) for percent, text in NINES]
    return Plot(
        "Latency by percentile",
        lines,
        "percentile",
        "ms",
        ticks=ticks,
        note="Drawn as far to the right as there were enough samples.",
        x_span=(0.0, max([x for line in lines for x, _ in line.points], default=3.0) or 3.0),
    )


def nines(percent: float) -> float:
    """Returns how many nines a percentile has: 90 is 1, 99 is 2."""
    return -math.log10(max(1e-9, 1 - percent / 100))


def delay_table(report: dict[str, Any]) -> str:
    """Returns all delays in numbers."""
    rows = [
        [
            NAMES[name],
            *(number(found.get(f"{key}_ms")) for key in ("p50", "p90", "p99", "p999", "max")),
            number(found["count"]),
        ]
        for name in NAMES
        if (found := report["delays"].get(name)) and found["count"]
    ]
    return table(["ms", "p50", "p90", "p99", "p99.9", "max", "count"], rows)


def thresholds(report: dict[str, Any]) -> str:
    """Returns the thresholds and what was measured."""
    rows = [
        [
            escape(one["threshold"]),
            escape(one["said"]),
            "not measured" if one["ok"] is None else yes(one["ok"], "kept", "not kept"),
        ]
        for one in report["thresholds"]
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    return (
        f'<h2>Thresholds</h2><div class="card wide">{table(["threshold", "measured", ""], rows)}'
        f"{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def customers(report: dict[str, Any]) -> str:
    """Returns the customers that were served latest, so that a few who suffer can be seen."""
    found = report["customers"]
    if not found["slowest"]:
        return ""
    rows = [
        [str(one["customer"]), *(number(one[name]) for name in ("p50_ms", "p90_ms", "later_ms", "frames"))]
        for one in found["slowest"]
    ]
    heads = ["customer", "p50 ms", "p90 ms", "later than the median", "frames"]
    note = f"99 % of {found['timed']:,} customers had a median of at most {number(found['p50_p99_ms'], 'ms')}."
    return f'<h2>Slowest customers</h2><div class="card wide">{table(heads, rows)}<p class="note">{note}</p></div>'


def environment(report: dict[str, Any]) -> str:
    """Returns where the load generator ran."""
    rows = [(name, escape(value)) for name, value in flat(report["environment"])]
    return f'<details><summary>Environment</summary><div class="card">{pairs(rows)}</div></details>'


def comparison(report: dict[str, Any]) -> str:
    """Returns two runs side by side."""
    rows = [
        [
            escape(one["name"]),
            number(one["before"]),
            number(one["after"]),
            "-" if one["change"] is None else f"{one['change']:+.1%}",
            "unknown" if one["noise"] is None else f"±{one['noise']:.1%}",
            f'<span class="{ {"better": "yes", "worse": "no"}.get(one["verdict"], "soft") }">{one["verdict"]}</span>',
        ]
        for one in report["changes"]
    ]
    lines = [*report["reasons"], *report["advice"], *(f"differs: {line}" for line in report["different"])]
    plots = [
        Plot(title, [line(before, name, 1, "before"), line(after, name, 2, "after")], "seconds", "ms", note="p99")
        for title, name in (("Ping → watcher", "watch"), ("Ping → ack", "ack"))
        for before, after in [report["series"]]
    ]
    said = "Nothing got worse" if report["ok"] else "Worse"
    return (
        f"<h1>Comparison</h1><p class=soft>{report['runs'][0]} and {report['runs'][1]} runs</p>"
        f'<div class="verdict {"ok" if report["ok"] else "bad"}"><b>{said}.</b>'
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in lines)}</ul></div>"
        f'<div class="card wide">{table(["figure", "before", "after", "change", "noise", ""], rows)}</div>'
        f'<div class="plots">{"".join(draw(plot) for plot in plots)}</div>'
    )


def line(series: Sequence[dict[str, Any]], name: str, colour: int, text: str) -> Line:
    """Returns the p99 of one delay over time."""
    return Line(text, [(middle(entry), entry["delays"].get(name, {}).get("p99_ms")) for entry in series], colour)


def checks(report: dict[str, Any]) -> str:
    """Returns what was compared with the truth, and the errors and closes there were."""
    texts = {
        "stored": "Every acked ping is stored exactly once, as it was sent",
        "positions": "vendors.lat and long are the newest fix",
        "views": "At the end, the views of sampled customers are the truth, vendor for vendor",
        "live views": "During the run, what sampled customers saw was the truth",
        "counts": "Counts of a zoomed-out map equal a fresh snapshot",
        "even": "No customer is served much later than the others",
        "protocol": "Every message follows the protocol",
    }
    rows, shown = [], []
    for name, check in report["checks"].items():
        looked = ", ".join(
            f"{check[key]:,} {key}" for key in ("rows", "vendors", "watchers", "cards", "observations") if key in check
        )
        text = texts.get(name, escape(name)) + (f"<br><small>{looked} compared</small>" if looked else "")
        rows.append([text, yes(check["ok"], "yes", f"{check['differences']:,} differences")])
        shown += check["shown"]
    listed = "".join(f"<li>{escape(line)}</li>" for line in [*shown, *report["incidents"]])
    listed = f"<ul>{listed}</ul>" if listed else ""
    return f'<h2>Verification</h2><div class="card wide">{table(["", ""], rows)}{listed}</div>'


def totals(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the counts of the whole run, warm-up and end included."""
    found = report["totals"]
    texts = {
        "sent": "pings sent",
        "acked": "pings acked",
        "resent": "sent again after a reconnect",
        "backlog": "collected without a network",
        "unanswered": "never answered",
        "refused": "connections refused by admission control",
        "dropped": "dropped by a full outbox",
        "connections": "connections",
        "positions": "positions to watchers",
        "frames": "frames with them",
        "snapshots": "snapshots",
        "pans": "pans",
        "follows": "follows",
        "sleeps": "phones put away",
        "losses": "networks lost",
        "cuts": "connections cut by storms",
    }
    rows = [(text, number(found[name])) for name, text in texts.items()]
    for name, text in (
        ("rejected", "rejected pings"),
        ("errors", "errors"),
        ("closes", "closes by code"),
        ("gave_up", "gave up"),
    ):
        counted = ", ".join(f"{escape(str(key))}: {count:,}" for key, count in sorted(found[name].items()))
        rows.append((text, counted or "none"))
    return rows


def generator(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what the load generator itself cost."""
    figures, own = report["figures"], report["generator"]
    return [
        ("cores", number(figures["own_cores"])),
        ("CPU per ping", number(figures["own_us_per_ping"], "µs")),
        ("CPU per received position", number(figures["own_us_per_position"], "µs")),
        ("pings sent late, p99", number(figures["late_p99_ms"], "ms")),
        ("frames read late, p99", number(figures["lag_p99_ms"], "ms")),
        ("processes", number(report["workers"])),
        ("clock against the server's", f"{own['clock_offset_ms']:g} ms, ±{own['clock_error_ms']:g}"),
    ]


def settings(report: dict[str, Any]) -> str:
    """Returns the scenario as it was run."""
    rows = [(name, escape(value)) for name, value in flat(report["settings"]) if name not in ("title", "about")]
    return f'<details><summary>The scenario in full</summary><div class="card">{pairs(rows)}</div></details>'


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


def knee(report: dict[str, Any]) -> Iterable[Plot]:
    """Yields delay and cost against the offered load, as the delivered load falls when it is too much."""
    steps = sorted(report["steps"], key=lambda step: step["scale"])
    limits = {one["name"]: one["limit"] for step in steps[:1] for one in step["thresholds"]}
    watched = any(step["figures"].get("watch_p99_ms") is not None for step in steps)
    slow, of, name = (
        ("watch_p99_ms", "Ping → watcher", "watch_p99_ms") if watched else ("ack_p99_ms", "Ping → ack", "ack_p99_ms")
    )
    vendors, customers = report["settings"]["vendors"]["count"], report["settings"]["customers"]["count"]
    load = f"times {vendors:,} vendors and {customers:,} customers"
    span = (0.0, max([step["scale"] for step in steps], default=1.0))
    marks = [Band(report["knee"]["scale"], span[1], "knee")] if report["knee"] is not None else []

    def against(name: str, colour: int, text: str, wanted: bool | None) -> Line:
        points = [
            (step["scale"], step["figures"].get(name)) for step in steps if wanted is None or step["ok"] == wanted
        ]
        return Line(text, points, colour, dots=True, bare=wanted is False)

    def plot(title: str, lines: Sequence[Line], unit: str, note: str = "", limit: float | None = None) -> Plot:
        return Plot(title, lines, load, unit, marks, limit=limit, note=note, x_span=span)

    yield plot(
        f"{of}, p99, against load",
        [against(slow, 1, "thresholds kept", True), against(slow, 5, "broken", False)],
        "ms",
        "At the knee, more load begins to cost much more delay.",
        limits.get(name),
    )
    if any(step["figures"].get("server_cores") is not None for step in steps):
        yield plot(
            "CPU against load",
            [against("server_cores", 1, "server", None), against("own_cores", 2, "load generator", None)],
            "cores",
        )
    yield plot(
        "Delivered against load",
        [against("positions_per_s", 1, "positions to watchers", None)],
        "a second",
        "Where this stops growing, positions are merged or late.",
    )


def step_table(report: dict[str, Any]) -> str:
    """Returns every step that was tried."""
    rows = [
        [
            f"{step['scale']:.3g}&nbsp;times",
            number(step["vendors"]),
            number(step["customers"]),
            number(step["figures"]["pings_per_s"]),
            number(step["figures"]["positions_per_s"]),
            number(step["figures"]["watch_p99_ms"]),
            number(step["figures"]["ack_p99_ms"]),
            number(step["figures"].get("server_cores")),
            yes(step["ok"], "kept", escape("; ".join(step["reasons"])[:160])),
        ]
        for step in report["steps"]
    ]
    return table(["scale", "vendors", "customers", "pings/s", "positions/s", "watch p99", "ack p99", "cores", ""], rows)


def number(value: float | None, unit: str = "") -> str:
    """Returns a number for people; a dash for none."""
    if value is None:
        return "-"
    if abs(value) >= 1000 or float(value).is_integer():
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    return f"{text} <small>{unit}</small>" if unit else text


def yes(ok: bool, good: str, bad: str) -> str:
    """Returns a word in the colour of its meaning."""
    return f'<span class="{"yes" if ok else "no"}">{good if ok else bad}</span>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Returns names and values; the values are HTML."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{value}</dd>' for name, value in rows)}</dl>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; all cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
