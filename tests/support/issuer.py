"""A token issuer that publishes its keys on this machine; another library creates keys and tokens."""

from __future__ import annotations

import time
import warnings
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from joserfc import jwk, jws, jwt

from tests.support.process import free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    RSA = {kid: jwk.RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"}) for kid in ("r1", "r2")}
    WEAK = jwk.RSAKey.generate_key(1024, {"kid": "weak", "use": "sig", "alg": "RS256"})
EC = {kid: jwk.ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": "ES256"}) for kid in ("e1", "e2")}
REGISTRY = jws.JWSRegistry(algorithms=["RS256", "ES256"], strict_check_header=False)

Key = jwk.RSAKey | jwk.ECKey


def public(*keys: Key) -> dict[str, Any]:
    """Returns a JWKS of these keys."""
    return {"keys": [dict(key.as_dict(private=False)) for key in keys]}


def signed(key: Key, claims: dict[str, Any] | None = None, **header: Any) -> str:
    """Returns a session token like Clerk's, signed with this key."""
    now = int(time.time())
    body = {
        "azp": "https://app.venta.example",
        "exp": now + 60,
        "fva": [0, -1],
        "iat": now,
        "iss": "https://clerk.venta.example",
        "nbf": now - 10,
        "sid": "sess_2QvLMyQbSEuUqJL4R6dCr8",
        "sts": "active",
        "sub": "user_1",
        "v": 2,
        **(claims or {}),
    }
    algorithm = "ES256" if isinstance(key, jwk.ECKey) else "RS256"
    head = {"alg": algorithm, "kid": key.kid, "typ": "JWT", "cat": "cl_B7d4PD111AAA", **header}
    said = {name: value for name, value in body.items() if value is not ...}
    return jwt.encode({k: v for k, v in head.items() if v is not None}, said, key, registry=REGISTRY)


class Issuer:
    """Serves `answer`, such as a JWKS, with `status`; `asked` counts requests. `down` and `up` keep the port."""

    def __init__(self, *keys: Key) -> None:
        self.answer: Any = public(*keys)
        self.status = 200
        self.asked = 0
        self._port = free_port()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The value of STREAMER_JWKS_URL."""
        return f"http://127.0.0.1:{self._port}/.well-known/jwks.json"

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    async def up(self) -> None:
        """Starts to answer, again on the same port."""
        app = web.Application()
        app.router.add_get("/.well-known/jwks.json", self._jwks)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def down(self) -> None:
        """Stops answering."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _jwks(self, _: web.Request) -> web.Response:
        self.asked += 1
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer, status=self.status)
        return web.json_response(self.answer, status=self.status)
