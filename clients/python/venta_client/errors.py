"""What can go wrong between a client and the server.

ClientError
├── Refused          the server answered the WebSocket handshake with something else than 101
├── ConnectionFailed the connection failed for good, or was ended by the app; carries the close code
├── PingRejected     a ping will never be stored; carries the error code
├── WatchRefused     the server does not take a watch; carries the error code
├── RequestRefused   the server refused an HTTP request; carries the error code
├── QueueFailed      the file that keeps pings can't be opened or written
└── Violation        the server sent what the protocol does not allow
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
    """A ping will never be stored: `code` is the protocol's error code, or ERR_DROPPED where the queue was full."""


class WatchRefused(_Coded):
    """The server does not take a watch as it is: `code` is the protocol's error code."""


class RequestRefused(_Coded):
    """The server refused an HTTP request: `code` is the protocol's error code, or a proxy's HTTP status."""


class QueueFailed(ClientError):
    """A queue can't be opened or written; the pings given since are in memory only."""


class Violation(ClientError):
    """The server sent what the protocol does not allow; the message quotes it."""
