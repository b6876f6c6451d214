"""The clients' alerts against the real server: create, change, list, test and delete, in both languages."""

from __future__ import annotations

import asyncio

import pytest

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET
from tests.support.clients import NODE_COMMAND, NODE_VERSION
from tests.support.paths import ROOT
from venta_client import Circle, RequestRefused, sync
from venta_client.alerts import Alerts

KEY = "a-key-for-alerts-a-key-for-alerts"
HERE: Circle = {"center": {"lat": 52.2297, "long": 21.0122}, "radius": 500}


async def test_a_backend_in_python(serve: Serve, database_url: str) -> None:
    """A backend manages its users' alerts without writing HTTP requests, and gets the reason of a refusal."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY, alerts_per_user=200, alert_changes=1000)

    async def token(refresh: bool) -> str:
        return make_token(SECRET, one.clerk_id, 600)

    async with Alerts(server.url, token=token) as alerts:
        url = "https://hooks.example.com/a"
        created = await alerts.create(["entered"], url, area=HERE, metadata={"user": 7}, key="once")
        assert created["secret"].startswith("whsec_")
        again = await alerts.create(["entered"], url, area=HERE, metadata={"user": 7}, key="once")
        assert again["id"] == created["id"]
        seen = await alerts.get(created["id"])
        assert (seen["area"], seen["metadata"]) == (HERE, {"user": 7})
        assert [alert["id"] async for alert in alerts.list()] == [seen["id"]]
        changed = await alerts.update(seen["id"], quiet=0, metadata=None)
        assert changed["quiet"] == 0
        assert "metadata" not in changed
        sent = await alerts.test(seen["id"])
        assert [delivery["id"] async for delivery in alerts.deliveries(seen["id"])] == [sent]
        await alerts.delete(seen["id"])
        with pytest.raises(RequestRefused) as refused:
            await alerts.get(seen["id"])
        assert refused.value.code == "ERR_ALERT_NOT_FOUND"
        for _ in range(101):
            await alerts.create(["left"], url, vendors=[one.vendor_id])
        assert len({alert["id"] async for alert in alerts.list()}) == 101


async def test_a_backend_without_asyncio(serve: Serve, database_url: str) -> None:
    """The synchronous client manages alerts, too, for Django and Flask."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY)

    def kept() -> None:
        with sync.Alerts(server.url, token=make_token(SECRET, one.clerk_id, 600)) as alerts:
            created = alerts.create(["entered"], "https://hooks.example.com/a", area=HERE, quiet=0)
            assert alerts.update(created["id"], quiet=5)["quiet"] == 5
            assert [alert["id"] for alert in alerts.list()] == [alerts.get(created["id"])["id"]]
            sent = alerts.test(created["id"])
            assert [delivery["id"] for delivery in alerts.deliveries(created["id"])] == [sent]
            alerts.delete(created["id"])
            with pytest.raises(RequestRefused, match="no alert"):
                alerts.get(created["id"])

    await asyncio.to_thread(kept)


@pytest.mark.skipif(NODE_VERSION < 20, reason="needs Node 20 or newer")
async def test_a_backend_in_javascript(serve: Serve, database_url: str) -> None:
    """The same in Node."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY, alerts_per_user=200, alert_changes=1000)
    process = await asyncio.create_subprocess_exec(
        *NODE_COMMAND,
        str(ROOT / "tests" / "js" / "alerts.mjs"),
        server.url,
        make_token(SECRET, one.clerk_id, 600),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
