"""Why a run can't start or can't be believed.

LoadtestError
├── WrongUse     what was asked for can't be done: exit code 2
├── RunFailed    the run could not be carried out: exit code 1
├── Refused      the server answered the WebSocket handshake with something else than 101
└── Violation    the server sent what the protocol does not allow
"""

from __future__ import annotations


class LoadtestError(Exception):
    """The root of all errors this package raises on purpose."""


class WrongUse(LoadtestError):
    """What was asked for can't be done; the message says what to give instead."""


class RunFailed(LoadtestError):
    """The run could not be carried out; the message says how far it came and what to look at."""


class Refused(LoadtestError):
    """The server did not open a WebSocket: its HTTP `status` and the beginning of its answer."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the server answered {status} to the WebSocket handshake: {body or 'nothing more'}")
        self.status = status
        self.body = body


class Violation(LoadtestError):
    """The server sent what the protocol does not allow; the message quotes it."""
