"""Finds the token in a request and the user it stands for."""

from __future__ import annotations

import asyncio
from hmac import compare_digest

from aiohttp import web

from streamer.accounts.tokens import Authenticator, Identity
from streamer.errors import ErrorCode, ProtocolError
from streamer.ingest.cost import LOOK_AGAIN, ClientCost
from streamer.protocol.messages import BEARER
from streamer.transport.handshake import items_of

NO_TOKEN = "a token is needed, as Authorization: Bearer or ?token="
COST = web.RequestKey("cost", ClientCost)
"""The cost to which a limited request is charged."""
PATIENCE = 1.0
"""Seconds that a read waits for its client's budget: an immediate refusal would cause an immediate retry."""


def token_of(request: web.Request) -> str | None:
    """Return the token of a request: from its header, URL or WebSocket subprotocol, in this order."""
    if token := bearer_of(request) or request.query.get("token"):
        return token
    for offered in items_of(request, "Sec-WebSocket-Protocol"):
        if offered.startswith(BEARER):
            return offered.removeprefix(BEARER)
    return None


def bearer_of(request: web.Request) -> str:
    """Return the token in `Authorization: Bearer`; empty when there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def has_key(request: web.Request, key: str) -> bool:
    """Return whether a request has this key as `Authorization: Bearer`, compared in constant time."""
    return compare_digest(bearer_of(request).encode(errors="surrogateescape"), key.encode())


async def identify(request: web.Request, authenticator: Authenticator, token: str | None = None) -> Identity:
    """Return the user of the request's token, or of `token` when the request has none of the usual ones.

    Raises:
        ProtocolError: there is no token, or it is not valid.
    """
    token = token_of(request) or token
    if not token:
        raise ProtocolError(ErrorCode.UNAUTHORIZED, NO_TOKEN)
    identity = await authenticator.check(token)
    cost = request.get(COST)
    if cost is not None:
        cost.set_user(identity.clerk_id, asyncio.get_running_loop().time())
        await await_budget(cost)
    return identity


async def await_budget(cost: ClientCost) -> None:
    """Wait until a read may be served. Raises ProtocolError when that takes longer than PATIENCE."""
    clock = asyncio.get_running_loop().time
    now = clock()
    until = now + PATIENCE
    while wait := cost.wait(now):
        if now >= until:
            cost.check(now)
        await asyncio.sleep(min(max(wait, LOOK_AGAIN), until - now))
        now = clock()


async def identify_watcher(request: web.Request, authenticator: Authenticator, *, required: bool) -> Identity | None:
    """Returns the user of a customer's request; None without a token if none is `required`."""
    if required or token_of(request) is not None:
        return await identify(request, authenticator)
    return None
