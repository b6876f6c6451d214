"""What can go wrong between a client and the server.

ClientError
├── Refused      the server answered the WebSocket handshake with something else than 101
├── Ended        the server said not to come back; carries the close code
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


class Violation(ClientError):
    """The server sent what the protocol does not allow; the message quotes it."""
