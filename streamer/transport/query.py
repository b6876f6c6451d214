"""Query strings of requests that read, and the pages that answer them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.fields import COORDINATES
from streamer.transport.problem import NO_STORE, json_response

MAX_LIMIT = 100
"""Maximum entries of a page."""


def number(name: str, value: str) -> float:
    """Return a finite number of a query string; raises ProtocolError if it is not a number."""
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        code = ErrorCode.INVALID_COORDINATES if name in COORDINATES else ErrorCode.INVALID_MESSAGE
        raise ProtocolError(code, f"{name} must be a number, not {value!r:.80}")
    return found


def limit_of(query: Mapping[str, str]) -> int:
    """Returns how many entries a page may have."""
    limit = number("limit", query.get("limit", "20"))
    if not (1 <= limit <= MAX_LIMIT and limit.is_integer()):
        raise ProtocolError(
            ErrorCode.INVALID_MESSAGE, f"limit must be a whole number from 1 to {MAX_LIMIT}, not {limit:g}"
        )
    return int(limit)


def paged(request: web.Request, name: str, page: list[dict[str, Any]], following: str | None) -> web.Response:
    """Returns a page under a name; `following` is the cursor of the next one, if any."""
    headers = dict(NO_STORE)
    if following is not None:
        headers["Link"] = f'<{request.path}?{urlencode({**request.query, "cursor": following})}>; rel="next"'
    return json_response({name: page, "next": following}, headers=headers)
