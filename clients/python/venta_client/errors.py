"""What can go wrong between a client and the server.

ClientError
├── Refused      the server answered the WebSocket handshake with something else than 101
├── Ended        the server said not to come back; carries the close code
├── WatchRefused the server does not take a watch; carries the error code
├── QueueFailed  the file that keeps pings can't be opened or written
└── Violation    the server sent what the protocol does not allow
"""

from __future__ import annotations


class ClientError(Exception):
    """The root of all errors this package raises on purpose."""


class Refused(ClientError):
    """The server did not open a WebSocket: its HTTP `status` and the beginning of its answer."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the server answered {status} to the WebSocket handshake: {body or 'nothing more'}")
        self.status = status
        self.body = body


class Ended(ClientError):
    """The connection ended for good: coming back would end the same way. `code` is the protocol's close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server ended the connection for good with {code}: {reason or 'it gave no reason'}")
        self.code = code
        self.reason = reason


class WatchRefused(ClientError):
    """The server does not take a watch as it is: `code` is the protocol's error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class QueueFailed(ClientError):
    """A queue can't be opened or written; the pings given since are in memory only."""


class Violation(ClientError):
    """The server sent what the protocol does not allow; the message quotes it."""
