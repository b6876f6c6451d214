"""The database of the documented Prisma schema, as created by `prisma migrate`."""

from __future__ import annotations

import importlib.util

from tests.support.paths import ROOT


def prisma_schema() -> str:
    """Returns the SQL of the five tables: the first migration's, without the partitions."""
    path = ROOT / "migrations" / "versions" / "0001_prisma_tables.py"
    spec = importlib.util.spec_from_file_location("prisma_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    statements = (*module.TABLES, *module.PRISMA_INDEXES, *module.FOREIGN_KEYS)
    return ";".join(statements).replace(' COLLATE "C"', "").replace(' PARTITION BY RANGE ("id")', "")
