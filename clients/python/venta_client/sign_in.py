"""Sign-in links: a code that a vendor's device exchanges for a token, once."""

from __future__ import annotations

from typing import TypedDict

import aiohttp
from yarl import URL

from venta_client.errors import RequestRefused


class SignedIn(TypedDict):
    """A token for a vendor; `expiresAt` is epoch ms."""

    token: str
    vendorId: str
    expiresAt: int


async def sign_in(url: str, code: str) -> SignedIn:
    """Exchange the code of a link (what follows `#code=`) for a token.

    Raises:
        RequestRefused: the code is wrong, expired or used.
    """
    async with aiohttp.ClientSession() as session, session.post(URL(url) / "v1/sign-in", json={"code": code}) as answer:
        body = await answer.json(content_type=None)
        if answer.status != 200:
            raise RequestRefused(body["code"], body["detail"])
        signed_in: SignedIn = body
        return signed_in
