"""`streamer doctor`: an operator sees faults before the first client does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from streamer.cli.doctor import MAX_SKEW, _check_clock, open_files
from streamer.errors import StreamerError
from streamer.operations.file_limits import RESERVE
from streamer.settings import Settings
from streamer.storage import dsn
from tests.support.apps import SECRET
from tests.support.commands import run
from tests.support.process import free_port

NOWHERE = "127.0.0.1:9"


async def test_everything_is_in_order(tmp_path: Path, database_url: str, redis_url: str) -> None:
    """A server that would start must not be reported as faulty."""
    done = await run(
        "doctor",
        folder=tmp_path,
        DATABASE_URL=database_url,
        REDIS_URL=redis_url,
        STREAMER_JWT_SECRET=SECRET,
        STREAMER_PORT=str(free_port()),
        STREAMER_MAX_CONNECTIONS="100",
    )
    assert done.status == 0, done
    for what in ("PostgreSQL", "migrations", "database rights", "Redis", "token keys", "port", "open files"):
        assert f"ok     {what}: " in done.out
    assert "its clock agrees" in done.out
    assert SECRET not in done.out


async def test_each_fault_is_named_with_its_remedy(tmp_path: Path, empty_database_url: str) -> None:
    """All faults are reported at once, so that an operator does not have to fix them one by one."""
    done = await run(
        "doctor",
        folder=tmp_path,
        DATABASE_URL=empty_database_url,
        REDIS_URL=f"redis://:dont-tell@{NOWHERE}",
        STREAMER_JWKS_URL=f"http://{NOWHERE}/jwks",
        STREAMER_HOST="203.0.113.1",
        STREAMER_MAX_CONNECTIONS="1000000000",
    )
    assert done.status == 1
    assert "ok     PostgreSQL" in done.out
    for what, remedy in (
        ("migrations", "streamer db upgrade"),
        ("Redis", "ConnectionError"),
        ("token keys", "try again"),
        ("port", "--host"),
        ("open files", "ulimit"),
    ):
        (line,) = (line for line in done.out.splitlines() if line.startswith(f"FAILED {what}"))
        assert remedy in line
    assert "dont-tell" not in done.out


async def test_nothing_is_set(tmp_path: Path) -> None:
    """Without any settings, the required ones are named."""
    done = await run("doctor", folder=tmp_path)
    assert done.status == 1
    for variable in ("DATABASE_URL", "REDIS_URL", "STREAMER_JWT_SECRET"):
        assert f"{variable} is not set" in done.out


@pytest.mark.parametrize(("offset", "word"), [(60.0, "ahead of"), (-60.0, "behind")])
def test_a_clock_that_differs(offset: float, word: str) -> None:
    """Timestamps decide which position is newest: with different clocks, maps show old positions."""
    now = time.time()
    with pytest.raises(StreamerError, match=f"60.. s {word} this machine's"):
        _check_clock(now + offset, now)
    _check_clock(now + MAX_SKEW / 2, now)


def test_open_files() -> None:
    """A server that runs out of file handles refuses clients that its settings allow."""
    most = 1024 - RESERVE - 8
    assert open_files(Settings.model_construct(pool_size=8, max_connections=most), 1024).ok
    found = open_files(Settings.model_construct(pool_size=8, max_connections=most + 1), 1024)
    assert not found.ok
    assert f"set STREAMER_MAX_CONNECTIONS to {most}" in found.detail


async def test_a_database_that_is_down(tmp_path: Path) -> None:
    """Each of the three checks that need PostgreSQL reports why it could not run."""
    done = await run("doctor", folder=tmp_path, DATABASE_URL=f"postgresql://u:dont-tell@{NOWHERE}/d")
    assert done.out.count("FAILED PostgreSQL: ") == 1
    assert "dont-tell" not in done.out
    assert dsn.parse_url(f"postgresql://u:dont-tell@{NOWHERE}/d").masked() in done.out
