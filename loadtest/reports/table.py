"""What a run found: one JSON object, or tables for people."""

from __future__ import annotations

from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text


def as_json(report: dict[str, Any]) -> str:
    """One line of JSON."""
    return orjson.dumps(report, option=orjson.OPT_NON_STR_KEYS).decode()


def rows(report: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A report as (dotted name, value), in its order; lists give one row an item."""
    found: list[tuple[str, str]] = []
    for name, value in report.items():
        if isinstance(value, dict):
            found += rows(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found += [(f"{prefix}{name}", shown(item)) for item in value]
        else:
            found.append((f"{prefix}{name}", shown(value)))
    return found


def shown(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(report: dict[str, Any], json: bool, console: Console) -> None:
    """Print a report to `console`."""
    if json:
        console.file.write(as_json(report) + "\n")
        return
    table = Table("what", "value", title=str(report.get("run", "")))
    table.columns[1].justify = "right"
    for name, value in rows({name: value for name, value in report.items() if name != "run"}):
        table.add_row(name, Text(value))  # a value may hold brackets, which are markup elsewhere
    console.print(table)
