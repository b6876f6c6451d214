"""Nothing a stranger may send breaks a rule: the targets of `make fuzz`, for as long as a test may take."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.flood import against_own_server
from tests.fuzz.mutations import mutated
from tests.support.paths import ROOT


@settings(max_examples=200)
@given(mutated(targets.SEEDS["vendor"]) | st.binary(max_size=100))
def test_vendor(data: bytes) -> None:
    """Of a vendor app that sends nonsense every ping is acked or rejected, once."""
    targets.vendor(data)


@settings(max_examples=150)
@given(mutated(targets.SEEDS["watch"]) | st.binary(max_size=100))
def test_watch(data: bytes) -> None:
    """Every accepted area is cheap, and shows exactly the vendors inside."""
    targets.watch(data)


@settings(max_examples=200)
@given(mutated(targets.SEEDS["http"]) | st.binary(max_size=100))
def test_http(data: bytes) -> None:
    """No body, query or header gets anything but an answer with a code."""
    targets.http(data)


@settings(max_examples=200)
@given(mutated(targets.SEEDS["frames"]) | st.binary(max_size=100))
def test_frames(data: bytes) -> None:
    """Whatever bytes come, and however they are cut, they are messages or one violation with its close code."""
    targets.frames(data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_seeds(name: str) -> None:
    """The fuzzer starts from valid messages: from refused ones it would reach little of the code."""
    for seed in targets.SEEDS[name]:
        targets.TARGETS[name](seed)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not here: make fuzz installs it")
def test_the_fuzzer_runs() -> None:
    """A fuzzer that does not start finds nothing, unnoticed."""
    run = [sys.executable, "-m", "tests.fuzz", "vendor", "--seconds", "2"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "stat::number_of_executed_units" in done.stderr


async def test_a_flood_of_random_connections(tmp_path: Path) -> None:
    """Some thousand generated messages at a running server, as `make fuzz` sends a million: it serves on."""
    outcome = await against_own_server(4000, 1, tmp_path)
    assert not outcome.faults, str(outcome)
    assert sum(outcome.answers.values()) > 1000
    assert {"ERR_INVALID_JSON", "ERR_INVALID_COORDINATES", "ERR_INVALID_AREA", "ack", "snapshot"} <= set(
        outcome.answers
    )
