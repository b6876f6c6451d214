"""Error codes, close codes, and the exceptions that carry them.

StreamerError
├── ProtocolError      a client's message or request is invalid; carries an error code
├── SettingsError      the configuration is invalid; names every mistake
├── DatabaseError      PostgreSQL's schema or contents are not what this version needs
├── Unavailable        PostgreSQL or Redis can't be reached; trying again may help
└── EmbeddedError      an embedded PostgreSQL or Valkey did not start
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ErrorCode(StrEnum):
    """The codes of `error` and `reject` messages and of problem documents (protocol, Errors)."""

    INVALID_JSON = "ERR_INVALID_JSON"
    INVALID_MESSAGE = "ERR_INVALID_MESSAGE"
    MISSING_FIELD = "ERR_MISSING_FIELD"
    INVALID_COORDINATES = "ERR_INVALID_COORDINATES"
    INVALID_TIMESTAMP = "ERR_INVALID_TIMESTAMP"
    TIMESTAMP_IN_FUTURE = "ERR_TIMESTAMP_IN_FUTURE"
    TIMESTAMP_TOO_OLD = "ERR_TIMESTAMP_TOO_OLD"
    INVALID_AREA = "ERR_INVALID_AREA"
    AREA_TOO_LARGE = "ERR_AREA_TOO_LARGE"
    TOO_MANY_WATCHES = "ERR_TOO_MANY_WATCHES"
    RATE_LIMITED = "ERR_RATE_LIMITED"
    UNAUTHORIZED = "ERR_UNAUTHORIZED"
    INVALID_TOKEN = "ERR_INVALID_TOKEN"
    FORBIDDEN = "ERR_FORBIDDEN"
    VENDOR_NOT_FOUND = "ERR_VENDOR_NOT_FOUND"
    ALERT_NOT_FOUND = "ERR_ALERT_NOT_FOUND"
    TOO_MANY_ALERTS = "ERR_TOO_MANY_ALERTS"
    INVALID_URL = "ERR_INVALID_URL"
    NOT_FOUND = "ERR_NOT_FOUND"
    OVERLOADED = "ERR_OVERLOADED"
    INTERNAL = "ERR_INTERNAL"


HTTP_STATUS: dict[ErrorCode, int] = {
    **dict.fromkeys(ErrorCode, 400),
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.INVALID_TOKEN: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.VENDOR_NOT_FOUND: 404,
    ErrorCode.ALERT_NOT_FOUND: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.INTERNAL: 500,
}


class CloseCode(IntEnum):
    """Why the server closes a WebSocket (protocol, Errors)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    TOO_BIG = 1009
    INTERNAL = 1011
    RESTART = 1012
    NOT_THIS_PROTOCOL = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    NOT_FOUND = 4404
    SILENT = 4408
    TOO_MANY = 4429
    TOO_SLOW = 4508


class StreamerError(Exception):
    """The root of all errors this project raises on purpose."""


class ProtocolError(StreamerError):
    """A client's message or request is rejected; the message names the wrong value."""

    def __init__(self, code: ErrorCode, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms


class SettingsError(StreamerError):
    """The configuration is invalid; the message names every mistake and its remedy."""


class DatabaseError(StreamerError):
    """PostgreSQL's schema or contents are not what this version needs; the message names the remedy."""


class Unavailable(StreamerError):
    """PostgreSQL or Redis can't be reached or does not answer in time; nothing is known to be lost.

    The message is for operators: it may contain hosts, roles and PostgreSQL's words. Clients get `public_message`.
    """

    def __init__(
        self, message: str, public_message: str = "a service that this request needs is unavailable: try again"
    ) -> None:
        super().__init__(message)
        self.public_message = public_message


class EmbeddedError(StreamerError):
    """An embedded PostgreSQL or Valkey did not start; the message ends with its log."""


class FrameError(Exception):
    """A client violated the WebSocket protocol; the connection must be closed with `close`."""

    def __init__(self, close: CloseCode, message: str) -> None:
        super().__init__(message)
        self.close = close


class Disconnect(Exception):
    """The connection must be closed with this code, after an `error` with `message`."""

    def __init__(self, close: CloseCode, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.close = close
        self.code = code
        self.message = message
