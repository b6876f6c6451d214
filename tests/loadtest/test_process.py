"""CPU and memory of the server's processes: the numbers that are quoted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loadtest.errors import WrongUse
from loadtest.measure.process import Processes, kind, parent, per, spent

SPIN = """
import time
while time.process_time() < 0.3:
    pass
print("done", flush=True)
input()
"""


def test_a_child_counts_while_it_runs_and_after_it_ended() -> None:
    """PostgreSQL's backends come and go: what they used must not vanish with them."""
    mine = Processes([os.getpid()])
    before = mine.cpu()
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = spent(before, mine.cpu())
        assert running["server"] >= 0.25
        assert mine.resident()["all"] > Processes([child.pid]).resident()["all"] > 1_000_000
    ended = spent(before, mine.cpu())
    assert ended["all"] >= running["all"] - 0.02


def test_a_process_that_is_not_there_is_wrong_use() -> None:
    """A wrong --pid would measure nothing and report a server that costs nothing."""
    with pytest.raises(WrongUse, match="no process 999999999"):
        Processes([999_999_999])


def test_kinds_are_told_by_name() -> None:
    """The cost of storing is split into PostgreSQL's and ours."""
    names = ["postgres", "postmaster", "redis-server", "valkey-server", "python3"]
    assert [kind(name) for name in names] == ["postgres", "postgres", "redis", "redis", "server"]
    assert parent(os.getpid(), "postgres") is None


def test_costs_for_one_and_for_none() -> None:
    """Nothing delivered has no cost each, rather than an infinite one."""
    assert per({"all": 0.5}, 1000) == {"all": 500.0}
    assert per({"all": 0.5}, 0) is None
