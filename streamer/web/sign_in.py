"""Sign-in links over HTTP: backends create them, as a URL and a QR code; the vendor page exchanges them for tokens."""

from __future__ import annotations

import io
from collections.abc import Callable

import segno
from aiohttp import web

from streamer.accounts.sign_in import SignInLinks
from streamer.settings import Settings
from streamer.transport.problem import NO_STORE, json_response
from streamer.web.backends import member, require_backend


class SignInEndpoints:
    """The handlers of `/v1/sign-in-links` and `/v1/sign-in`."""

    def __init__(self, settings: Settings, links: SignInLinks, clock: Callable[[], int]) -> None:
        self._settings = settings
        self._links = links
        self._clock = clock

    async def create(self, request: web.Request) -> web.Response:
        """`POST /v1/sign-in-links`: makes a link for a vendor, for a backend that has the key."""
        require_backend(request, self._settings)
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


def qr_svg(text: str) -> str:
    """Returns a QR code as an SVG document."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(out, kind="svg", scale=4, border=4, xmldecl=False)
    return out.getvalue().decode()
