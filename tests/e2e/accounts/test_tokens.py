"""Tokens over HTTP: attacks by strangers, and errors that an app's developer reads when a token is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import aiohttp
import pytest

from streamer.accounts.tokens import make_token
from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import SECRET
from tests.support.issuer import EC, RSA, Issuer, public, signed

NEARBY = "/v1/vendors/nearby?lat=52.2297&long=21.0122&radius=1000"


async def asked(url: str, token: str) -> tuple[int, str]:
    """Returns status and detail of a request with this token."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(url + NEARBY, headers={"Authorization": f"Bearer {token}"}) as response,
    ):
        body = json.loads(await response.read())
        return response.status, body.get("detail", "")


def forged(claims: dict[str, Any], key: bytes, **header: str) -> str:
    """Returns a token signed by HMAC with any key; built by hand, as libraries refuse public keys."""

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    head = f"{part({'alg': 'HS256', 'typ': 'JWT', **header})}.{part(claims)}"
    signature = base64.urlsafe_b64encode(hmac.new(key, head.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    return f"{head}.{signature}"


@pytest.mark.parametrize("secret", [SECRET, None], ids=["with a shared secret", "without"])
async def test_the_issuers_public_key_is_no_secret(
    serve: Serve, vendors: list[SeededVendor], secret: str | None
) -> None:
    """The JWKS is public, so an HMAC token signed with a key from it must be refused."""
    async with Issuer(RSA["r1"], EC["e1"]) as issuer:
        running = await serve(watch_auth="required", jwks_url=issuer.url, jwt_secret=secret)
        for kid, key in (("r1", RSA["r1"]), ("e1", EC["e1"])):
            status, _ = await asked(running.url, signed(key, {"sub": vendors[0].clerk_id}))
            assert status == 200
            claims = {"sub": vendors[0].clerk_id, "exp": int(time.time()) + 60, "iss": "https://clerk.venta.example"}
            der = key.as_der(private=False)
            for known in (
                key.as_pem(private=False),
                key.as_pem(private=False).strip(),
                der,
                json.dumps(public(key)["keys"][0]).encode(),
                b"",
            ):
                for alg in ("HS256", "RS256", "ES256", "HS384", "none"):
                    assert (await asked(running.url, forged(claims, known, kid=kid, alg=alg)))[0] == 401


async def test_the_developer_reads_why(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A backend's token without expiry, with milliseconds or with too long a lifetime is refused with the cause."""
    running = await serve(watch_auth="required", jwt_max_lifetime=3600.0)
    now, user = int(time.time()), vendors[0].clerk_id
    assert (await asked(running.url, make_token(SECRET, user, 3600)))[0] == 200
    for claims, why in (
        ({"sub": user}, 'missing the "exp" claim'),
        ({"sub": user, "exp": (now + 60) * 1000}, "is in milliseconds"),
        ({"sub": user, "iat": now, "exp": now + 4000}, "STREAMER_JWT_MAX_LIFETIME"),
    ):
        status, detail = await asked(running.url, forged(claims, SECRET.encode()))
        assert status == 401
        assert why in detail


async def test_an_event_stream_ends_with_its_token(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A page with an open stream must not go on watching after its user was signed out."""
    running = await serve(watch_auth="required", jwt_leeway=0.0)
    token = make_token(SECRET, vendors[0].clerk_id, 3)
    watch = f"{running.url}/v1/watch/events?lat=52.23&long=21.01&radius=1000&token={token}"
    async with aiohttp.ClientSession() as session, session.get(watch) as response:
        assert response.status == 200
        said = await response.content.read()
    assert b"ERR_INVALID_TOKEN" in said
    assert b"expired" in said
    async with aiohttp.ClientSession() as session, session.get(watch) as response:
        assert response.status == 401
