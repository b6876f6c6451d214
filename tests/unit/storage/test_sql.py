"""Values get into statements only as parameters: this test stops SQL built from client input."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

FOLDERS = ("streamer", "loadtest", "clients/python")

TAKE_SQL = re.compile(r"execute(many|script)?|fetch(row|val|many)?|scalars?|prepare|text|cursor")
"""Methods and functions whose first argument is a statement, of asyncpg, SQLAlchemy and sqlite3."""

SPEAKS_SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|GRANT|SET) ")

# what the scan can't see to be harmless, and why it is
KNOWN = {
    ("store.py", "statement"): "Store._vendors: one of the constants beside it",
    ("database.py", "statement"): "of the caller, whose statement is looked at there",
    ("partitions.py", "add"): "of the table ADDS in the same file",
    ("roles.py", "right.privilege"): "of the table RIGHTS in the same file",
    ("roles.py", "privilege"): "one of two words in the same function",
    ("roles.py", "function"): "of the table FUNCTIONS in the same file",
    ("roles.py", "verifier"): "base64 of our own making",
    ("adopt.py", "query"): "of the table OBSTACLES in adopt_sql",
    ("adopt.py", "row[0]"): "made by PostgreSQL's format() with quoted identifiers",
    ("adopt.py", "statement"): "of the lists in adopt_sql, or with quoted names",
    ("adopt.py", "hold_ms"): "a number of the same file",
    ("connections.py", "statement"): "of callers, who give constants",
    ("privacy.py", "statement"): "of the table ERASE_ROWS in queries.py",
    ("migrate.py", "signature"): "regprocedure's text, which PostgreSQL has quoted",
}


def is_constant_name(name: str) -> bool:
    return name.isupper()


class Scan:
    """One file's statements that are not made of constants and quoted identifiers alone."""

    def __init__(self, source: str, name: str = "") -> None:
        self.name = name
        self.tree = ast.parse(source)
        self.local: dict[str, list[ast.expr]] = {}
        self.known: set[tuple[str, str]] = set()

    def findings(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.local.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and TAKE_SQL.fullmatch(self.called(node)) and node.args:
                for culprit in self.unsafe(node.args[0]):
                    yield f"{self.name}:{node.lineno}: {culprit} in {ast.unparse(node.args[0])}"
        for name, values in self.local.items():
            if is_constant_name(name):
                for value in values:
                    if isinstance(value, ast.JoinedStr | ast.BinOp) and SPEAKS_SQL.search(ast.unparse(value)):
                        for culprit in self.unsafe(value):
                            yield f"{self.name}:{value.lineno}: {culprit} in {name}"

    @staticmethod
    def called(call: ast.Call) -> str:
        function = call.func
        if isinstance(function, ast.Attribute):
            # `text` is SQLAlchemy's function; what prepares otherwise is a response
            other = function.attr == "text" or (
                function.attr == "prepare" and "connection" not in ast.unparse(function)
            )
            return "" if other else function.attr
        return getattr(function, "id", "")

    def unsafe(self, expression: ast.expr, depth: int = 0) -> Iterator[str]:
        """The parts that could hold a value."""
        match expression:
            case ast.Constant():
                return
            case ast.JoinedStr(values=parts):
                for part in parts:
                    yield from self.unsafe(part.value if isinstance(part, ast.FormattedValue) else part, depth)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                yield from self.unsafe(left, depth)
                yield from self.unsafe(right, depth)
            case ast.Name(id=name) | ast.Attribute(attr=name) if is_constant_name(name):
                return
            case ast.Call() if self.called(expression) in ("quoted", "literal"):
                return
            case ast.Call(args=[inner]) if self.called(expression) == "text":
                yield from self.unsafe(inner, depth)
            # STATEMENT.format(quoted(name))
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr="format"),
                args=parts,
                keywords=[],
            ) if is_constant_name(name):
                for part in parts:
                    yield from self.unsafe(part, depth)
            # ", ".join(map(quoted, names))
            case ast.Call(
                func=ast.Attribute(value=ast.Constant(), attr="join"),
                args=[ast.Call(func=ast.Name(id="map"), args=[ast.Name(id="quoted"), _])],
            ):
                return
            case _ if (self.name, ast.unparse(expression)) in KNOWN:
                self.known.add((self.name, ast.unparse(expression)))
            case ast.Name(id=name) if depth < 3 and name in self.local:
                for value in self.local[name]:
                    yield from self.unsafe(value, depth + 1)
            case _:
                yield ast.unparse(expression)


def test_values_are_parameters() -> None:
    """With a client's text in one statement, a client could run any SQL."""
    found: list[str] = []
    known: set[tuple[str, str]] = set()
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    for path in files:
        scan = Scan(path.read_text(encoding="utf-8"), path.name)
        found += scan.findings()
        known |= scan.known
    assert found == [], "make it a parameter ($1); an identifier goes through quoted()"
    assert known == set(KNOWN), "what is no longer there need not be known"


@pytest.mark.parametrize(
    "statement",
    [
        'c.execute(f"SELECT {name}")',
        'c.fetch("SELECT " + name)',
        'c.fetchval("SELECT %s" % name)',
        'c.fetchrow("SELECT {}".format(name))',
        "c.fetchrow(QUERY.format(name))",
        "c.fetchrow(QUERY.format(f'{quoted(schema)}.{name}'))",
        "c.execute(made_elsewhere(name))",
        "c.execute(text(f'DROP TABLE {name}'))",
        "query = f'SELECT {name}'\nc.execute(query)",
        "QUERY = f'SELECT {name}'",
        "QUERY = 'SELECT 1' + name",
        "c.execute(''.join(parts))",
        "c.execute(statement)",
    ],
)
def test_the_scan_finds(statement: str) -> None:
    """A scan that finds nothing would always pass."""
    assert list(Scan(statement, "other.py").findings())


@pytest.mark.parametrize(
    "statement",
    [
        'c.execute("SELECT $1", name)',
        "c.execute(QUERY, name)",
        'c.execute(f"DROP TABLE {quoted(name)}")',
        'columns = ", ".join(map(quoted, names))\nc.execute(f"SELECT {columns}")',
        "c.fetchrow(QUERY.format(f'{quoted(schema)}.{quoted(name)}'))",
        "QUERY = BEGIN + 'AND x = $1'\nc.execute(text(f'{QUERY} LIMIT {MOST}'))",
    ],
)
def test_the_scan_lets_be(statement: str) -> None:
    """A scan with false alarms would be switched off."""
    assert list(Scan(statement).findings()) == []
