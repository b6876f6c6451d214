"""Receives webhooks of alerts and forwards them to browsers by Web Push."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from aiohttp import web
from py_vapid import Vapid
from py_vapid.utils import b64urlencode
from pywebpush import WebPushException, webpush

from venta_client.webhooks import WebhookRefused, verify

HERE = Path(__file__).parent
KEYS = Path("vapid.pem")
SECRETS = os.environ.get("WEBHOOK_SECRETS", "").split()
"""The `secret` of each alert."""
CONTACT = os.environ.get("VAPID_CONTACT", "mailto:you@example.com")
SEEN = 10_000
WORDS = {
    "vendor.entered": "{name} is nearby",
    "vendor.left": "{name} has left",
    "vendor.opened": "{name} is open",
    "vendor.closed": "{name} has closed",
}


class Forwarder:
    """Browsers that asked for messages, and the webhooks that were forwarded; in memory, for an example."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, None] = {}
        self.vapid = Vapid.from_file(str(KEYS)) if KEYS.exists() else Vapid()
        if not KEYS.exists():
            self.vapid.generate_keys()
            self.vapid.save_key(str(KEYS))

    async def key(self, _: web.Request) -> web.Response:
        """The public key with which a browser subscribes."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        raw = self.vapid.public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return web.Response(text=b64urlencode(raw))

    async def subscribe(self, request: web.Request) -> web.Response:
        """Keeps what a browser's `pushManager.subscribe` returned."""
        subscription = await request.json()
        self.subscriptions[subscription["endpoint"]] = subscription
        return web.Response(status=204)

    async def hook(self, request: web.Request) -> web.Response:
        """Takes a webhook; one that comes again is answered and not forwarded again."""
        try:
            webhook = verify(SECRETS, request.headers, await request.read())
        except WebhookRefused as refused:
            return web.Response(status=400, text=str(refused))
        if webhook.id not in self.seen:
            name = webhook.vendor["name"] if webhook.vendor else "A test"
            text = WORDS.get(webhook.type, "{name}").format(name=name)
            await asyncio.gather(*(self.push(each, text) for each in list(self.subscriptions.values())))
            # Only now: one that could not be forwarded is answered 500, and comes again.
            self.seen[webhook.id] = None
            if len(self.seen) > SEEN:
                del self.seen[next(iter(self.seen))]
        return web.Response(status=204)

    async def push(self, subscription: dict[str, Any], text: str) -> None:
        """Sends a message to one browser, and forgets a browser that is gone."""
        try:
            await asyncio.to_thread(
                webpush, subscription, json.dumps({"text": text}), self.vapid, {"sub": CONTACT}, ttl=600
            )
        except WebPushException as error:
            if error.response is not None and error.response.status_code in (404, 410):
                self.subscriptions.pop(subscription["endpoint"], None)


def app() -> web.Application:
    """Returns the application."""
    forwarder = Forwarder()
    made = web.Application()
    made.add_routes(
        [
            web.get("/", page),
            web.get("/worker.js", worker),
            web.get("/key", forwarder.key),
            web.post("/subscribe", forwarder.subscribe),
            web.post("/hook", forwarder.hook),
        ]
    )
    return made


async def page(_: web.Request) -> web.FileResponse:
    """The page that asks for messages."""
    return web.FileResponse(HERE / "index.html")


async def worker(_: web.Request) -> web.FileResponse:
    """The script that shows them, also while the page is closed."""
    return web.FileResponse(HERE / "worker.js")


if __name__ == "__main__":
    web.run_app(app(), host="127.0.0.1", port=9000)
