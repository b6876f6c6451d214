"""The example receiver: receives a signed webhook, and sends an encrypted message to the browser's push service."""

from __future__ import annotations

import importlib.util
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from streamer.alerts.signing import headers, new_secret
from tests.support.paths import ROOT

pytest.importorskip("pywebpush", reason="pywebpush is not installed: pip install -e .[test]")
http_ece: Any = pytest.importorskip("http_ece")

EXAMPLE = ROOT / "examples/webhook-receiver"
CARD = {"vendorId": "v", "name": "Pierogi", "open": True, "primaryImage": None, "lat": 52.0, "long": 21.0}


class Browser:
    """A browser's subscription and its push service; `answer` is the service's status, 0 closes the connection."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.answer = 201
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._auth = os.urandom(16)

    def subscription(self, url: str) -> dict[str, Any]:
        """Returns the result of `pushManager.subscribe`."""
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        keys = {"p256dh": encoded(point), "auth": encoded(self._auth)}
        return {"endpoint": f"{url}/push/1", "expirationTime": None, "keys": keys}

    async def push(self, request: web.Request) -> web.Response:
        """Receives a message, which only the browser can decrypt."""
        body = await request.read()
        if self.answer == 0 and request.transport is not None:
            request.transport.abort()
        assert request.headers["Authorization"].startswith(("vapid ", "WebPush "))
        assert int(request.headers["TTL"]) > 0
        if self.answer == 201:
            text = http_ece.decrypt(body, private_key=self._key, auth_secret=self._auth, version="aes128gcm")
            self.messages.append(orjson.loads(text))
        return web.Response(status=self.answer or 500)


def encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """An application on a port of this machine."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def example() -> ModuleType:
    """The unchanged example."""
    spec = importlib.util.spec_from_file_location("webhook_receiver", EXAMPLE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_a_webhook_becomes_a_message_in_the_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A webhook sent twice shows one message; an unsigned one is refused; an expired subscription is removed."""
    secret = new_secret()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEBHOOK_SECRETS", f"{new_secret()} {secret}")
    browser = Browser()
    push_service = web.Application()
    push_service.router.add_post("/push/1", browser.push)
    async with (
        served(push_service) as push_url,
        served(example().app()) as url,
        aiohttp.ClientSession(url) as session,
    ):

        async def sent(id: str, kind: str, signed_with: str = secret) -> int:
            event = {"type": kind, "alertId": "a", "vendor": CARD, "at": 1_796_000_000_000}
            body = orjson.dumps(event)
            signed = headers(signed_with, id, int(time.time()), body)
            async with session.post("/hook", data=body, headers=signed) as answer:
                return answer.status

        async with session.get("/") as page, session.get("/worker.js") as worker, session.get("/key") as key:
            assert (page.status, worker.status) == (200, 200)
            assert len(await key.text()) == 87
        async with session.post("/subscribe", json=browser.subscription(push_url)) as answer:
            assert answer.status == 204
        assert await sent("1", "vendor.entered") == 204
        assert browser.messages == [{"text": "Pierogi is nearby"}]
        assert await sent("1", "vendor.entered") == 204
        assert await sent("2", "vendor.left", new_secret()) == 400
        assert len(browser.messages) == 1
        assert await sent("3", "vendor.left") == 204
        assert browser.messages[1:] == [{"text": "Pierogi has left"}]
        browser.answer = 0
        assert await sent("6", "vendor.opened") == 500
        browser.answer = 201
        assert await sent("6", "vendor.opened") == 204
        assert browser.messages.pop() == {"text": "Pierogi is open"}, "it was forwarded when it came again"
        browser.answer = 410
        assert await sent("4", "vendor.opened") == 204
        browser.answer = 201
        assert await sent("5", "vendor.closed") == 204
        assert len(browser.messages) == 2
