"""Logging: one line per event on stderr, readable on a terminal and JSON elsewhere.

- A repeated line is written a few times and then counted: "and 4,711 more like it within 10 s". Lines count as equal if
  their text and level are equal, whatever their values; event texts in this package are constants.
- Every line about a request or socket carries its `connection`.
- No tokens, passwords or positions: text that looks like one is masked, in tracebacks and other libraries' messages
  too.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, TextIO

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

Form = Literal["auto", "json", "people"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

MAX_REPEATS = 10
"""Equal lines that are written within WINDOW."""
WINDOW = 10.0
MAX_KINDS = 1000
"""Maximum kinds of lines that are remembered, so that a library with varying texts cannot fill the memory."""

MASKS = [
    # a JWT, anywhere
    (re.compile(r"(?<![\w-])eyJ[\w-]{8,}(\.[\w-]+){1,4}"), "***"),
    (re.compile(r"(?i)\b(token|password|secret)(\\?['\"]?\s*[=:]\s*\\?['\"]?)[^\s&'\",;}\\]+"), r"\1\2***"),
    (re.compile(r"(?i)\b(bearer|basic)([ .])[\w.~+/=-]{16,}"), r"\1\2***"),
    # the password of a URL
    (re.compile(r"(\w://[^\s:/@'\"]*):[^\s/@'\"]+@"), r"\1:***@"),
    (re.compile(r"(?i)\b(lat|long?|lng|latitude|longitude)(\\?['\"]?\s*[=:]\s*\\?['\"]?)-?\d+([.,]\d+)*"), r"\1\2***"),
    # what a refusal quotes
    (re.compile(r"\b((?:lat|long) must be -?\d+ to \d+ degrees, not )(?:(\\?\")[^\"\\]*|-?\d[\d.e+-]*)"), r"\1\2***"),
]


def configure(*, form: Form = "auto", level: str = "info", stream: TextIO | None = None) -> RepeatFilter:
    """Sends structlog and the standard library's loggers to stderr in one form.

    Args:
        form: `auto` is `people` on a terminal and `json` elsewhere.

    Returns:
        The filter that counts repeated lines.
    """
    out = stream or sys.stderr
    as_json = form == "json" or (form == "auto" and not out.isatty())
    lowest = LEVELS[level]
    repeats = RepeatFilter(lambda text: structlog.get_logger().warning(text, summary=True))
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        shared.append(with_pid)
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), masked]
    else:
        # The default formatter prints the values of local variables, tokens among them.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain), masked]
    structlog.configure(
        processors=[repeats.processor, *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[remove_meta, *last], foreign_pre_chain=shared))
    handler.addFilter(is_relevant)
    handler.addFilter(repeats.filter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(lowest, logging.WARNING))
    atexit.register(repeats.flush)
    os.register_at_fork(after_in_child=repeats.reset)
    return repeats


def masked(_: Any, __: str, line: str) -> str:
    """Masks secrets and positions in a finished line."""
    for pattern, replacement in MASKS:
        line = pattern.sub(replacement, line)
    return line


def is_relevant(record: logging.LogRecord) -> bool:
    """Drops aiohttp's reports of malformed requests: anyone can cause them, and they quote what was sent."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name == "aiohttp.server" and isinstance(error, HttpProcessingError | RequestPayloadError))


def with_pid(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Adds the process id: several processes may write to one log."""
    event["pid"] = os.getpid()
    return event


class RepeatFilter:
    """Passes the first lines of a kind, counts the others, and reports the count when the window is over."""

    def __init__(
        self,
        report: Callable[[str], None],
        *,
        most: int = MAX_REPEATS,
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._most = most
        self._window = window
        self._clock = clock
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}
        self._timers: dict[tuple[str, str], threading.Timer] = {}
        self._lock = threading.Lock()  # libraries log from their own threads

    def passes(self, level: str, text: str) -> bool:
        """Counts a line and returns whether it is to be written."""
        now, kind = self._clock(), (level, text)
        with self._lock:
            since, count = self._kinds.get(kind, (now, 0))
            if now - since >= self._window and kind not in self._timers:
                since, count = now, 0
            if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
                self._kinds = {each: state for each, state in self._kinds.items() if each in self._timers}
            self._kinds[kind] = (since, count + 1)
            if count < self._most:
                return True
            if kind not in self._timers:
                timer = threading.Timer(max(0.0, since + self._window - now), self._end_window, [kind])
                timer.daemon = True
                self._timers[kind] = timer
                timer.start()
            return False

    def flush(self) -> None:
        """Reports all counts now."""
        for kind in tuple(self._timers):
            self._end_window(kind)

    def reset(self) -> None:
        """Forgets all counts: a forked process has none of its parent's timer threads."""
        self._lock = threading.Lock()
        self._kinds, self._timers = {}, {}

    def processor(self, _: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Filters structlog's events."""
        if "summary" not in event and not self.passes(level, str(event.get("event"))):
            raise structlog.DropEvent
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """Filters the standard library's records."""
        return self.passes(record.levelname.lower(), f"{record.name}: {record.msg}")

    def _end_window(self, kind: tuple[str, str]) -> None:
        with self._lock:
            timer = self._timers.pop(kind, None)
            since, count = self._kinds.pop(kind, (0.0, 0))
            dropped, seconds = count - self._most, self._clock() - since
        if timer is not None:
            timer.cancel()
        if dropped > 0:
            level, text = kind
            self._report(f"and {dropped:,} more like it within {seconds:.0f} s: [{level}] {text}")
