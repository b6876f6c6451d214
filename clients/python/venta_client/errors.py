"""The clients' errors.

ClientError
├── Refused          the server answered the WebSocket handshake with a status other than 101
├── ConnectionFailed the connection failed for good, or was ended by the app; carries the close code
├── PingRejected     a ping will never be stored; carries the error code
├── WatchRefused     the server refused a watch; carries the error code
├── RequestRefused   the server refused an HTTP request; carries the error code
├── QueueFailed      the file that keeps pings can't be opened or written
└── Violation        the server violated the protocol
"""

from __future__ import annotations


class ClientError(Exception):
    """The base class of this package's errors."""


class Refused(ClientError):
    """The server refused the WebSocket handshake; carries the HTTP `status` and the beginning of the answer."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the server answered {status} to the WebSocket handshake: {body or 'nothing more'}")
        self.status = status
        self.body = body


class ConnectionFailed(ClientError):
    """The connection failed for good: reconnecting would fail the same way. `code` is the protocol's close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the connection ended for good with {code}: {reason or 'no reason was given'}")
        self.code = code
        self.reason = reason


class _Coded(ClientError):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class PingRejected(_Coded):
    """A ping will never be stored: `code` is the protocol's error code, or ERR_DROPPED if the queue was full."""


class WatchRefused(_Coded):
    """The server refused a watch: `code` is the protocol's error code."""


class RequestRefused(_Coded):
    """The server refused an HTTP request: `code` is the protocol's error code, or a proxy's HTTP status."""


class QueueFailed(ClientError):
    """A queue can't be opened or written; pings since then are in memory only."""


class Violation(ClientError):
    """The server violated the protocol; the message quotes what it sent."""
