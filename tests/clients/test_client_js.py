"""Unit tests of the JavaScript client's rules."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.clients import NODE_COMMAND, NODE_VERSION
from tests.support.paths import ROOT


@pytest.mark.skipif(NODE_VERSION < 20, reason="needs Node 20 or newer")
def test_the_rules_by_themselves() -> None:
    """Delays, close codes, queues and the differences of views, without a server."""
    rules = ROOT / "tests" / "js" / "rules.test.mjs"
    ran = subprocess.run([*NODE_COMMAND, "--test", str(rules)], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
