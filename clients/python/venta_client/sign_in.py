"""Sign-in links: a vendor's device exchanges a one-time code for a token."""

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
    """Exchanges the code of a link (the part after `#code=`) for a token.

    Raises:
        RequestRefused: the code is wrong, expired or used.
    """
    async with aiohttp.ClientSession() as session, session.post(URL(url) / "v1/sign-in", json={"code": code}) as answer:
        if not answer.ok:
            raise await refusal(answer)
        signed_in: SignedIn = await answer.json(content_type=None)
        return signed_in


async def refusal(answer: aiohttp.ClientResponse) -> RequestRefused:
    """Returns the error of an answer: of the server's problem document, or of a proxy's answer."""
    try:
        problem = await answer.json(content_type=None)
        return RequestRefused(problem["code"], problem["detail"])
    except (ValueError, KeyError, TypeError):
        return RequestRefused(str(answer.status), f"{answer.reason}, from {answer.url.origin()}")
