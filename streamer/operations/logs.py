"""Logs: one line per event on stderr, for people on a terminal, as JSON elsewhere; made to be read in a bad night.

- A line that comes again and again is written a few times and then counted: "and 4,711 more like it in 10 s". Lines
  are alike when their text and level are, whatever values they carry; the texts in this package are constants.
- Every line from a request or socket has the `connection` it is about.
- No tokens, no passwords, and no positions: what looks like one is masked wherever it comes from, tracebacks and other
  libraries' messages included.
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

MOST_ALIKE = 10
"""Lines of one kind that are written within WINDOW."""
WINDOW = 10.0
MOST_KINDS = 1000
"""Kinds of lines that are remembered; a library that makes up texts must not fill the memory."""

MASKS = [
    # a JWT, wherever it is
    (re.compile(r"(?<![\w-])eyJ[\w-]{8,}(\.[\w-]+){1,4}"), "***"),
    (re.compile(r"(?i)\b(token|password|secret)(\\?['\"]?\s*[=:]\s*\\?['\"]?)[^\s&'\",;}\\]+"), r"\1\2***"),
    (re.compile(r"(?i)\b(bearer|basic)([ .])[\w.~+/=-]{16,}"), r"\1\2***"),
    # the password of a URL
    (re.compile(r"(\w://[^\s:/@'\"]*):[^\s/@'\"]+@"), r"\1:***@"),
    (re.compile(r"(?i)\b(lat|long|lon|lng|latitude|longitude)(\\?['\"]?\s*[=:]\s*\\?['\"]?)-?\d[\d.]*"), r"\1\2***"),
]


def configure(*, form: Form = "auto", level: str = "info", stream: TextIO | None = None) -> Storms:
    """Send structlog and the standard library's loggers to stderr in one form; `auto`: people on a terminal.

    What is given sums up storms, and does so by itself.
    """
    out = stream or sys.stderr
    as_json = form == "json" or (form == "auto" and not out.isatty())
    lowest = LEVELS[level]
    storms = Storms(lambda text: structlog.get_logger().warning(text, storm=True))
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        shared.append(with_pid)
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), masked]
    else:
        # The default prints the values of local variables, tokens among them.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain), masked]
    structlog.configure(
        processors=[storms.processor, *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[remove_meta, *last], foreign_pre_chain=shared))
    handler.addFilter(worth_telling)
    handler.addFilter(storms.filter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(lowest, logging.WARNING))
    atexit.register(storms.tell_all)
    os.register_at_fork(after_in_child=storms.forget)
    return storms


def masked(_: Any, __: str, line: str) -> str:
    """A finished line without what must not be in it."""
    for pattern, instead in MASKS:
        line = pattern.sub(instead, line)
    return line


def worth_telling(record: logging.LogRecord) -> bool:
    """Whether a line of a library is worth it: not what strangers send that is no HTTP, which aiohttp quotes whole."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name == "aiohttp.server" and isinstance(error, HttpProcessingError | RequestPayloadError))


def with_pid(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Several processes write into one log."""
    event["pid"] = os.getpid()
    return event


class Storms:
    """Lets the first lines of a kind through, counts the others, and has the count told once the window is over."""

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        most: int = MOST_ALIKE,
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._most = most
        self._window = window
        self._clock = clock
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}
        self._timers: dict[tuple[str, str], threading.Timer] = {}
        # Libraries log from threads of their own too.
        self._lock = threading.Lock()

    def passes(self, level: str, text: str) -> bool:
        """Count a line; whether it is to be written."""
        now, kind = self._clock(), (level, text)
        with self._lock:
            since, count = self._kinds.get(kind, (now, 0))
            if now - since >= self._window and kind not in self._timers:
                since, count = now, 0
            if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
                self._kinds = {each: state for each, state in self._kinds.items() if each in self._timers}
            self._kinds[kind] = (since, count + 1)
            if count < self._most:
                return True
            if kind not in self._timers:
                timer = threading.Timer(max(0.0, since + self._window - now), self.tell_one, [kind])
                timer.daemon = True
                self._timers[kind] = timer
                timer.start()
            return False

    def tell_one(self, kind: tuple[str, str]) -> None:
        """The window of a kind is over: say what was not written, and write its next lines again."""
        with self._lock:
            timer = self._timers.pop(kind, None)
            since, count = self._kinds.pop(kind, (0.0, 0))
            spared, seconds = count - self._most, self._clock() - since
        if timer is not None:
            timer.cancel()
        if spared > 0:
            level, text = kind
            self._tell(f"and {spared:,} more like it within {seconds:.0f} s: [{level}] {text}")

    def tell_all(self) -> None:
        """The same for all kinds, at the end."""
        for kind in tuple(self._timers):
            self.tell_one(kind)

    def forget(self) -> None:
        """A forked process has none of the threads that would tell its parent's sums."""
        self._lock = threading.Lock()
        self._kinds, self._timers = {}, {}

    def processor(self, _: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """For structlog."""
        if "storm" not in event and not self.passes(level, str(event.get("event"))):
            raise structlog.DropEvent
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """For the standard library's handlers."""
        return self.passes(record.levelname.lower(), f"{record.name}: {record.msg}")
