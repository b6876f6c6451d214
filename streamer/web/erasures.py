"""Erasure over HTTP, for backends: everything stored of a vendor, or of a user with all vendors."""

from __future__ import annotations

import asyncio

from aiohttp import web

from streamer.errors import ErrorCode, ProtocolError
from streamer.operations import privacy
from streamer.settings import Settings
from streamer.transport.admission import RETRY_AFTER_MS
from streamer.transport.problem import json_response
from streamer.web.backends import member, require_backend

WITHIN = 45.0
"""Seconds for one request; an erasure that takes longer continues with the next one."""
POLLS = 5
"""Polls for deleted vendors after which every server has closed their connections."""


class Erasures:
    """The handler of `/v1/erasures`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._busy = asyncio.Lock()

    async def erase(self, request: web.Request) -> web.Response:
        """`POST /v1/erasures`: erases the vendor or user with the given `id`; one erasure at a time."""
        url = self._settings.erase_database_url
        require_backend(request, self._settings)
        if url is None:
            raise ProtocolError(ErrorCode.FORBIDDEN, "erasure over HTTP is off: set STREAMER_ERASE_DATABASE_URL")
        id = await member(request, "id")
        if self._busy.locked():
            raise _later("another erasure is running")
        redis_url = self._settings.redis_url
        async with self._busy:
            try:
                async with asyncio.timeout(WITHIN):
                    done = await privacy.erase(
                        url.get_secret_value(),
                        None if redis_url is None else redis_url.get_secret_value(),
                        id,
                        stream_key=self._settings.feed_key if self._settings.feed == "on" else None,
                        backup_dir=self._settings.backup_dir,
                        noticed_within=POLLS * self._settings.change_poll_interval,
                    )
            except TimeoutError:
                raise _later(f"{id} is not completely erased yet") from None
            except privacy.NobodyToErase as wrong:
                raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, str(wrong)) from None
        backups = [{"name": one.path.name, "at": round(one.at.timestamp() * 1000)} for one in done.backups]
        return json_response({"id": id, "rows": done.rows, "redis": done.redis, "backups": backups})


def _later(why: str) -> ProtocolError:
    message = f"{why}: send the request again, it continues where it was"
    return ProtocolError(ErrorCode.OVERLOADED, message, retry_after_ms=RETRY_AFTER_MS)
