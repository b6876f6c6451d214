"""Differences between a database's schema and the models, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, inspect, text

from streamer.storage import audit
from streamer.storage.connections import connected
from streamer.storage.migrate import comparison, migrating
from streamer.storage.models import METADATA
from streamer.storage.queries import ADDS_ALERT_PARTITIONS, ADDS_PARTITIONS, IS_PARTITIONED


async def drift(url: str) -> list[str]:
    """Returns a line for each difference between the database and the models; empty when there is none."""
    async with migrating(url) as connection:
        lines = await connection.run_sync(_drift)
    async with connected(url) as opened:
        return lines + await audit.gaps(opened)


def _drift(connection: Connection) -> list[str]:
    # compare_metadata itself reads the tables without a schema, which is the first one of the search_path.
    context = MigrationContext.configure(connection, opts=comparison())
    lines = [_in_words(difference) for difference in _flat(compare_metadata(context, METADATA))]
    # Alembic compares neither checks nor partitioning.
    inspector = inspect(connection)
    present = set(inspector.get_table_names())
    for name, table in sorted(METADATA.tables.items()):
        if name not in present:
            continue
        wanted = {str(check.name) for check in table.constraints if isinstance(check, CheckConstraint)}
        found = {str(check["name"]) for check in inspector.get_check_constraints(name)}
        lines += [f"{name}: check {check} is missing" for check in sorted(wanted - found)]
        lines += [f"{name}: check {check} is in no model" for check in sorted(found - wanted)]
    if "locations" in present and not connection.scalar(text(IS_PARTITIONED)):
        lines.append("locations: is not partitioned")
    if not connection.scalar(text(ADDS_PARTITIONS)):
        lines.append("locations: function streamer_add_partition(date) is missing")
    if "streamer_alert_events" in present and not connection.scalar(text(ADDS_ALERT_PARTITIONS)):
        lines.append("streamer_alert_events: function streamer_add_alert_partition(date) is missing")
    return lines


def _flat(differences: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Unpacks the lists into which Alembic puts the changes of one column."""
    for difference in differences:
        if isinstance(difference, list):
            yield from difference
        else:
            yield difference


def _in_words(difference: tuple[Any, ...]) -> str:
    kind, *rest = difference
    if kind.startswith("modify_"):
        _, table, column, _, found, wanted = rest
        return f"{table}: {kind.removeprefix('modify_')} of column {column} is {found!r}, the model has {wanted!r}"
    action, _, what = kind.partition("_")
    object = rest[-1]
    owner = object.name if what == "table" else getattr(object, "table", None)
    if what == "column":
        owner = rest[1]
    verdict = "is missing" if action == "add" else "is in no model"
    return f"{owner}: {what} {getattr(object, 'name', object)} {verdict}"
