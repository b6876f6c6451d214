"""Clients beyond the limit on file descriptors are refused with an answer, not cut."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streamer.operations.file_limits import RESERVE
from tests.support.paths import ROOT

PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from streamer import settings
from streamer.errors import SettingsError
from streamer.operations.file_limits import fit_to_descriptors
try:
    fitted = fit_to_descriptors(settings.load(max_connections=1000, pool_size=8))
except SettingsError as refused:
    sys.exit(str(refused))
print(fitted.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
"""
NEEDED = 1000 + 8 + RESERVE


def fitted(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a limit that was lowered can't be raised again."""
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "limit"),
    [
        (600, 5000, 1000, NEEDED),
        (5000, 5000, 1000, 5000),
        (400, 600, 600 - 8 - RESERVE, 600),
    ],
)
def test_the_limit_is_raised_or_fewer_clients_are_admitted(soft: int, hard: int, connections: int, limit: int) -> None:
    """With the usual soft limit of 1024 half of the clients were cut without an answer, and no log said why."""
    done = fitted(soft, hard)
    assert done.stdout.split()[-2:] == [str(connections), str(limit)]
    assert (connections < 1000) == ("limit on file descriptors is too low" in done.stdout + done.stderr)


def test_a_limit_that_leaves_no_room_is_refused() -> None:
    """A server that starts but can't take a single client would look healthy."""
    done = fitted(200, 200)
    assert done.returncode == 1
    assert "LimitNOFILE" in done.stderr
