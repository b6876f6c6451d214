"""Erasure over HTTP: requested by a backend with the key, refused to everyone else."""

from __future__ import annotations

from typing import Any

import aiohttp
from structlog.testing import capture_logs

from streamer.storage.seed import SeededVendor
from tests.conftest import Serve
from tests.support.apps import CustomerApp, VendorApp, circle, described

KEY = "the-key-of-a-backend-the-key-of-a-backend"
HERE = (52.2297, 21.0122)


async def erase(session: aiohttp.ClientSession, url: str, body: Any, key: str | None = KEY) -> tuple[int, Any]:
    """Returns the status and the body of an answer, which must match the API description."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with session.post(f"{url}/v1/erasures", json=body, headers=headers) as answer:
        answered = await answer.json(content_type=None)
        shape = "Erased" if answer.status == 200 else "Problem"
        described((shape,))[shape].validate(answered)
        return answer.status, answered


async def test_a_vendor_is_erased(
    serve: Serve, database_url: str, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """The vendor leaves all maps, its connection ends, all its data is deleted; another vendor's data stays."""
    gone, stays = vendors[:2]
    running = await serve(backend_key=KEY, erase_database_url=database_url, feed="on", change_poll_interval=0.2)
    async with (
        CustomerApp(running.url) as customer,
        VendorApp(running.url, stays.clerk_id) as other,
        VendorApp(running.url, gone.clerk_id) as app,
    ):
        await app.ping(*HERE)
        await other.ping(*HERE)
        await app.acked(1)
        await other.acked(1)
        await customer.watch("w", circle(*HERE, 1000))
        await customer.sees("w", {gone.vendor_id: HERE, stays.vendor_id: HERE})
        status, done = await erase(session, running.url, {"id": gone.vendor_id})
        assert (status, done.get("id")) == (200, gone.vendor_id)
        assert (done["rows"]["vendors"], done["rows"]["locations"], done["backups"]) == (1, 1, [])
        await customer.sees("w", {stays.vendor_id: HERE})
    status, answer = await erase(session, running.url, {"id": gone.vendor_id})
    assert (status, answer["code"]) == (404, "ERR_VENDOR_NOT_FOUND")


async def test_only_a_backend_erases(
    serve: Serve, database_url: str, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """Erasure can't be undone: without the key, or without the setting, nothing is erased, and the answer says why."""
    asked = {"id": vendors[0].vendor_id}
    running = await serve(backend_key=KEY, erase_database_url=database_url)
    for key in (None, KEY + "x"):
        assert (await erase(session, running.url, asked, key))[0] == 401
    assert (await erase(session, running.url, {}))[1]["code"] == "ERR_MISSING_FIELD"
    for missing, settings in (
        ("STREAMER_BACKEND_KEY", {"erase_database_url": database_url}),
        ("STREAMER_ERASE_DATABASE_URL", {"backend_key": KEY}),
    ):
        status, answer = await erase(session, (await serve(**settings)).url, asked)
        assert status == 403
        assert missing in answer["detail"]
    assert (await erase(session, running.url, asked | {"id": "nobody"}))[0] == 404


async def test_a_database_that_is_not_as_expected_is_not_404(
    serve: Serve, database_url: str, direct: Any, vendors: list[SeededVendor], session: aiohttp.ClientSession
) -> None:
    """A backend interprets 404 as "already erased", so it must not be the answer while the vendor's data is stored."""
    running = await serve(backend_key=KEY, erase_database_url=database_url)
    await direct.execute("UPDATE alembic_version SET version_num = '0001'")
    with capture_logs() as logs:
        status, answer = await erase(session, running.url, {"id": vendors[0].vendor_id})
    assert (status, answer["code"]) == (500, "ERR_INTERNAL")
    assert any("streamer db upgrade" in line.get("error", "") for line in logs)
