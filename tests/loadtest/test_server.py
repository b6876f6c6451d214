"""CPU and memory of the server's processes: the numbers that are quoted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loadtest import WrongUse
from loadtest.measure.server import Processes, kind, parent, parse_metrics

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
    before = mine.used()[0]["all"]
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cpu, resident = mine.used()
        running = cpu["all"] - before
        assert running >= 0.25
        assert resident["all"] > Processes([child.pid]).used()[1]["all"] > 1_000_000
    assert mine.used()[0]["all"] - before >= running - 0.02


def test_a_process_that_is_not_there_is_wrong_use() -> None:
    """A wrong --pid would measure nothing and report a server that costs nothing."""
    with pytest.raises(WrongUse, match="no process 999999999"):
        Processes([999_999_999])


def test_processes_are_classified_by_name() -> None:
    """The cost of storing is split into PostgreSQL's and ours."""
    names = ["postgres", "postmaster", "redis-server", "valkey-server", "python3"]
    assert [kind(name) for name in names] == ["postgres", "postgres", "redis", "redis", "server"]
    assert parent(os.getpid(), "postgres") is None


def test_metrics_of_several_workers_add_up() -> None:
    """CPU and memory as any Prometheus client library names them; a page without them is no zero."""
    text = (
        "# TYPE process_cpu_seconds_total counter\n"
        'process_cpu_seconds_total{worker="1"} 1.5\nprocess_cpu_seconds_total{worker="2"} 2.5e0\n'
        "process_resident_memory_bytes 1e8\nother_total 7\n"
    )
    assert parse_metrics(text) == ({"server": 4.0, "all": 4.0}, {"server": 1e8, "all": 1e8})
    assert parse_metrics("other_total 7\n") is None
    assert parse_metrics("process_cpu_seconds_total x\n") is None
