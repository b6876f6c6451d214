"""The HTTP client of webhooks, tested against a real server in this machine's network."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from aiohttp import ClientConnectorError
from aiohttp.abc import AbstractResolver, ResolveResult

from streamer.alerts.delivery import Deliverer, reason
from streamer.alerts.signing import Vault
from streamer.counters import Counters
from streamer.settings import Settings
from tests.support.apps import now_ms
from tests.support.receiver import Receiver


class Rebound(AbstractResolver):
    """Resolves every name to this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0),
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("host", ["rebound.example.com", "127.0.0.1", "[::ffff:127.0.0.1]"])
async def test_no_connection_is_made_to_an_address_that_is_not_public(host: str) -> None:
    """Otherwise a user could make the server send requests to internal hosts: cloud metadata, databases, routers."""
    settings = Settings.model_construct()
    deliverer = Deliverer(settings, None, Vault(["k" * 32]), now_ms, Counters(), Rebound())  # type: ignore[arg-type]  # nothing is stored
    async with Receiver() as receiver, deliverer.session(public=True) as session:
        for scheme in ("http", "https"):
            with pytest.raises(ClientConnectorError) as failed:
                await session.post(f"{scheme}://{host}:{receiver.port}/hook", data=b"{}")
            assert reason(failed.value) == "its host has an address that is not public"
        assert receiver.received == []


async def test_a_development_host_is_reached() -> None:
    """A developer's receiver may be on the same machine."""
    settings = Settings.model_construct()
    deliverer = Deliverer(settings, None, Vault(["k" * 32]), now_ms, Counters())  # type: ignore[arg-type]  # nothing is stored
    async with Receiver() as receiver, deliverer.session(public=False) as session:
        headers = {"webhook-id": "c1", "webhook-timestamp": str(now_ms() // 1000), "webhook-signature": "v1,"}
        async with session.post(receiver.url, data=b'{"alertId":"a"}', headers=headers) as answer:
            assert answer.status == 204
        assert len(receiver.received) == 1
        receiver.faults.clear()
