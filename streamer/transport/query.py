"""Query strings of requests that read, and the pages that answer them."""

from __future__ import annotations

import math
import re
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import orjson
from aiohttp import web

from streamer.errors import ErrorCode, ProtocolError
from streamer.protocol.fields import COORDINATES
from streamer.transport.problem import NO_STORE, json_response

MAX_LIMIT = 100
"""Maximum entries of a page."""
MOST_WORDS = 8
MOST_LETTERS = 100
WORD = re.compile(r"[^\W_]+")
SPECIAL = str.maketrans("łøđ", "lod")


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


def words(query: str) -> list[str]:
    """Returns the words of a query, folded as the index folds names; ProtocolError for none, or for too many."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", query.lower()) if not unicodedata.combining(c))
    found = WORD.findall(letters.translate(SPECIAL))
    if not found or len(query) > MOST_LETTERS or len(found) > MOST_WORDS:
        message = f"query must have 1 to {MOST_WORDS} words in at most {MOST_LETTERS} characters, not {query!r:.120}"
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, message)
    return found


def encode_cursor(name: str, vendor_id: str) -> str:
    """Returns the position of a vendor in the list as an opaque string."""
    return urlsafe_b64encode(orjson.dumps([name, vendor_id])).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[str, str]:
    """Returns the name and id of a cursor; ProtocolError when this server did not make it."""
    try:
        name, vendor_id = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(name, str) and isinstance(vendor_id, str) and "\0" not in name + vendor_id:
            return name, vendor_id
    except (ValueError, TypeError):
        pass
    message = f"cursor {cursor!r:.80} is not the `next` of a page: start again without it"
    raise ProtocolError(ErrorCode.INVALID_MESSAGE, message)
