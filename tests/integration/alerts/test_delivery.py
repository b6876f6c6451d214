"""The HTTP client of webhooks, tested against a real server in this machine's network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientConnectorError
from aiohttp.abc import AbstractResolver, ResolveResult

from streamer.alerts.delivery import Deliverer, reason
from streamer.alerts.signing import Vault, new_secret
from streamer.counters import Counters
from streamer.settings import Settings
from streamer.storage.alerts import AlertStore, Change, NewAlert
from streamer.storage.database import Database
from tests.conftest import connected
from tests.support.alerts import new_alert
from tests.support.apps import eventually, now_ms
from tests.support.receiver import Receiver


class Rebound(AbstractResolver):
    """Resolves every name to this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0),
        ]

    async def close(self) -> None:
        pass


@pytest.fixture
async def store(serving_url: str) -> AsyncIterator[AlertStore]:
    """With the database role of servers."""
    database = await Database.open(serving_url)
    yield AlertStore(database)
    await database.close()


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


async def test_a_410_of_the_previous_url_does_not_end_the_alert(store: AlertStore, database_url: str) -> None:
    """A user who moves a receiver, and lets the old one answer 410, would lose the alert and its pending webhooks."""
    row, vault = await new_alert(store, database_url), Vault(["k" * 32])
    async with connected(database_url) as connection:
        owner = await connection.fetchval(
            'SELECT "clerkId" FROM "users" u JOIN "streamer_alerts" a ON a."userId" = u."id" WHERE a."id" = $1', row.id
        )
    async with Receiver() as old, Receiver() as new:
        settings = Settings.model_construct(alert_development_hosts=(old.host, new.host))
        deliverer = Deliverer(settings, store, vault, now_ms, Counters())

        async def move(to: Receiver) -> None:
            asked = NewAlert(row.source, 0, to.url, to.host, row.secret, None, None, None, None)
            await store.change(owner, row.id, lambda _: Change(asked, same=True, revive=True))

        secret = new_secret()
        async with connected(database_url) as connection:
            await connection.execute('UPDATE "streamer_alerts" SET "secret" = $1', vault.encrypt(secret))
        old.secrets[row.id] = new.secrets[row.id] = secret
        await move(old)
        old.answer, old.hold = lambda _: 410, asyncio.Event()
        await store.add_event(row.id, "vendor.entered", f'{{"alertId":"{row.id}","type":"vendor.entered"}}', now_ms())
        tasks = [asyncio.create_task(run()) for run in deliverer.tasks().values()]
        try:
            await eventually(lambda: deliverer.running == 1, "a request to the old receiver")
            await move(new)
            old.hold.set()
            await new.gets("entered")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert (await store.get(owner, row.id)).reason is None
