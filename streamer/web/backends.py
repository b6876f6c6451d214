"""The endpoints for backends: sign-in links, as a URL and a QR code, and erasures; and the exchange of a link."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

import segno
from aiohttp import web

from streamer.accounts.sign_in import SignInLinks
from streamer.errors import ErrorCode, ProtocolError
from streamer.operations import privacy
from streamer.protocol.fields import decode_json
from streamer.settings import Settings
from streamer.transport.admission import RETRY_AFTER_MS
from streamer.transport.identify import has_key
from streamer.transport.problem import NO_STORE, json_response

WITHIN = 45.0
"""Seconds for one request; an erasure that takes longer continues with the next one."""
POLLS = 5
"""Polls for deleted vendors after which every server has closed their connections."""


class BackendEndpoints:
    """The handlers of `/v1/sign-in-links`, `/v1/sign-in` and `/v1/erasures`."""

    def __init__(self, settings: Settings, links: SignInLinks, clock: Callable[[], int]) -> None:
        self._settings = settings
        self._links = links
        self._clock = clock
        self._erasing = asyncio.Lock()

    async def create_link(self, request: web.Request) -> web.Response:
        """`POST /v1/sign-in-links`: makes a link for a vendor, for a backend that has the key."""
        self._require_key(request)
        vendor_id = await member(request, "vendorId")
        await self._links.owner_of(vendor_id)
        link = self._links.create(
            vendor_id, self._settings.public_url or str(request.url.origin()), self._clock() / 1000
        )
        body = {"url": link.url, "vendorId": vendor_id, "expiresAt": link.expires * 1000, "qr": qr_svg(link.url)}
        return json_response(body, status=201, headers=NO_STORE)

    async def exchange(self, request: web.Request) -> web.Response:
        """`POST /v1/sign-in`: exchanges a link's code for a token, once."""
        used = await self._links.exchange(await member(request, "code"), self._clock() / 1000)
        body = {"token": used.token, "vendorId": used.vendor_id, "expiresAt": used.expires * 1000}
        return json_response(body, headers=NO_STORE)

    async def erase(self, request: web.Request) -> web.Response:
        """`POST /v1/erasures`: erases the vendor or user with the given `id`; one erasure at a time."""
        url = self._settings.erase_database_url
        self._require_key(request)
        if url is None:
            raise ProtocolError(ErrorCode.FORBIDDEN, "erasure over HTTP is off: set STREAMER_ERASE_DATABASE_URL")
        id = await member(request, "id")
        if self._erasing.locked():
            raise _later("another erasure is running")
        redis_url = self._settings.redis_url
        async with self._erasing:
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

    def _require_key(self, request: web.Request) -> None:
        if self._settings.backend_key is None:
            raise ProtocolError(ErrorCode.FORBIDDEN, "endpoints for backends are off: set STREAMER_BACKEND_KEY")
        if not has_key(request, self._settings.backend_key.get_secret_value()):
            raise ProtocolError(ErrorCode.UNAUTHORIZED, "the backend key is needed, as Authorization: Bearer")


async def member(request: web.Request, name: str) -> str:
    """Returns a string member of a request's JSON body."""
    body = decode_json(await request.read(), "the body")
    value = body.get(name) if isinstance(body, dict) else None
    if value is None:
        raise ProtocolError(ErrorCode.MISSING_FIELD, f'the body must be an object with "{name}"')
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise ProtocolError(ErrorCode.INVALID_MESSAGE, f"{name} must be a string of 1 to 1024 characters")
    return value


def qr_svg(text: str) -> str:
    """Returns a QR code as an SVG document."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(out, kind="svg", scale=4, border=4, xmldecl=False)
    return out.getvalue().decode()


def _later(why: str) -> ProtocolError:
    message = f"{why}: send the request again, it continues where it was"
    return ProtocolError(ErrorCode.OVERLOADED, message, retry_after_ms=RETRY_AFTER_MS)
