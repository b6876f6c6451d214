"""The words and cursors of `GET /v1/vendors`, which finds vendors by name. Pure."""

from __future__ import annotations

import re
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode

import orjson

from streamer.errors import ErrorCode, ProtocolError

MOST_WORDS = 8
MOST_LETTERS = 100
WORD = re.compile(r"[^\W_]+")
SPECIAL = str.maketrans("łøđ", "lod")


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
