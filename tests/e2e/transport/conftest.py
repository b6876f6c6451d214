"""Fixtures for the tests of connections."""

from __future__ import annotations

import pytest

from streamer.transport import connection, slow_clients


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are checked 20 times a second, so that no test waits for seconds."""
    for module in (connection, slow_clients):
        monkeypatch.setattr(module, "CHECK_EVERY", 0.05)
