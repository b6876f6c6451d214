"""`GET /v1/vendors`: vendors by name, also those that are not on the map."""

from __future__ import annotations

import re
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from streamer.errors import ErrorCode, ProtocolError
from streamer.storage.store import Store
from streamer.transport.query import limit_of, paged

MOST_WORDS = 8
MOST_LETTERS = 100
WORD = re.compile(r"[^\W_]+")
SPECIAL = str.maketrans("łøđ", "lod")


class VendorSearch:
    """Finds vendors by the beginnings of the words of their names, without case and accents.

    The answer has no positions: watch the ids for those.
    """

    def __init__(self, store: Store, authorize: Callable[[web.Request], Awaitable[object]]) -> None:
        self._store = store
        self._authorize = authorize

    async def search(self, request: web.Request) -> web.Response:
        """`GET /v1/vendors?query&open&limit&cursor`: one page, sorted by name."""
        await self._authorize(request)
        query = request.query.get("query", "")
        found = words(query)
        if not found or len(query) > MOST_LETTERS or len(found) > MOST_WORDS:
            message = (
                f"query must have 1 to {MOST_WORDS} words in at most {MOST_LETTERS} characters, not {query!r:.120}"
            )
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, message)
        limit = limit_of(request.query)
        given = request.query.get("open", "false")
        if given not in ("true", "false"):
            raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"open must be true or false, not {given!r:.40}")
        cursor = request.query.get("cursor")
        after = ("", "") if cursor is None else decode_cursor(cursor)
        rows = await self._store.search(found, given == "true", limit + 1, after)
        page = rows[:limit]
        following = encode_cursor(page[-1].name, page[-1].vendor_id) if len(rows) > len(page) else None
        vendors = [
            {"vendorId": row.vendor_id, "name": row.name, "open": row.open, "primaryImage": row.primary_image}
            for row in page
        ]
        return paged(request, "vendors", vendors, following)


def words(query: str) -> list[str]:
    """Returns the words of a query, folded as the index folds names."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", query.lower()) if not unicodedata.combining(c))
    return WORD.findall(letters.translate(SPECIAL))


def encode_cursor(name: str, vendor_id: str) -> str:
    """Returns the place of a vendor in the list, as an opaque text."""
    return urlsafe_b64encode(orjson.dumps([name, vendor_id])).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[str, str]:
    """Returns the name and id of a cursor; ProtocolError when it is none of ours."""
    try:
        name, vendor_id = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(name, str) and isinstance(vendor_id, str) and "\0" not in name + vendor_id:
            return name, vendor_id
    except (ValueError, TypeError):
        pass
    message = f"cursor {cursor!r:.80} is not one that came as `next`: begin again without it"
    raise ProtocolError(ErrorCode.INVALID_MESSAGE, message)
