"""Sign-in links over HTTP: backends create them, the vendor page exchanges them; as text, and as a QR code."""

from __future__ import annotations

import hmac
import io
from collections.abc import Callable

import orjson
import segno
from aiohttp import web

from streamer.accounts.sign_in import SignInLinks
from streamer.errors import ErrorCode, ProtocolError
from streamer.settings import Settings
from streamer.transport.problem import json_response


class SignInEndpoints:
    """The handlers of `/v1/sign-in-links` and `/v1/sign-in`."""

    def __init__(self, settings: Settings, links: SignInLinks, clock: Callable[[], int]) -> None:
        self._key = settings.backend_key
        self._origin = settings.public_url
        self._links = links
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """Returns the routes."""
        return [web.post("/v1/sign-in-links", self.create), web.post("/v1/sign-in", self.exchange)]

    async def create(self, request: web.Request) -> web.Response:
        """`POST /v1/sign-in-links`: makes a link for a vendor, for a backend that has the key."""
        if self._key is None:
            raise ProtocolError(ErrorCode.FORBIDDEN, "sign-in links are off: set STREAMER_BACKEND_KEY")
        _, _, given = request.headers.get("Authorization", "").partition(" ")
        if not hmac.compare_digest(given.strip().encode(), self._key.get_secret_value().encode()):
            raise ProtocolError(ErrorCode.UNAUTHORIZED, "the backend key is needed, as Authorization: Bearer")
        vendor_id = await _member(request, "vendorId")
        await self._links.owner_of(vendor_id)
        link = self._links.create(vendor_id, self._origin or str(request.url.origin()), self._clock() / 1000)
        body = {"url": link.url, "vendorId": vendor_id, "expiresAt": link.expires * 1000, "qr": qr_svg(link.url)}
        return json_response(body, status=201, headers={"Cache-Control": "no-store"})

    async def exchange(self, request: web.Request) -> web.Response:
        """`POST /v1/sign-in`: exchanges a link's code for a token, once."""
        used = await self._links.exchange(await _member(request, "code"), self._clock() / 1000)
        body = {"token": used.token, "vendorId": used.vendor_id, "expiresAt": used.expires * 1000}
        return json_response(body, headers={"Cache-Control": "no-store"})


async def _member(request: web.Request, name: str) -> str:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as bad:
        raise ProtocolError(ErrorCode.INVALID_JSON, f"the body is not JSON: {bad}") from None
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
