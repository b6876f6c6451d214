"""Logs: one line per event, for people on a terminal, as JSON elsewhere. No tokens, no positions."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError

_TOKEN = re.compile(r"\beyJ[\w-]{8,}(\.[\w-]+){1,4}")
"""What looks like a JWT: JSON that begins with `{"`, encoded."""


def configure(*, json: bool | None = None, level: int = logging.INFO) -> None:
    """Send structlog and the standard library's loggers to stderr in one form."""
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        # Not structlog's usual traceback, which shows the values of variables: tokens and positions are among them.
        else [structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)]
    )
    last.append(without_tokens)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=last, foreign_pre_chain=shared))
    handler.addFilter(worth_telling)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def without_tokens(_: Any, __: str, line: Any) -> Any:
    """The last step: whatever came into a line by whichever way, no token leaves in it."""
    return _TOKEN.sub("<token>", line) if type(line) is str and "eyJ" in line else line


def worth_telling(record: logging.LogRecord) -> bool:
    """Whether a line of a library is worth it: not what strangers send that is no HTTP, which aiohttp quotes whole."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name == "aiohttp.server" and isinstance(error, HttpProcessingError))
