"""A deleted user or vendor must be disconnected on every process, and a changed card must be shown."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import asyncpg
import pytest

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from streamer.storage.seed import SeededVendor
from streamer.storage.store import VendorRow
from tests.conftest import Running, Serve
from tests.e2e.transport.test_sse import EventSource
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms

LAT, LONG = 52.2297, 21.0122
HERE = circle(LAT, LONG, 1000)
SOFT = """UPDATE "{}" SET "deletedAt" = now() WHERE "{}" = $1"""


@pytest.fixture
async def servers(serve: Serve, vendors: list[SeededVendor]) -> list[Running]:
    """Two processes that poll often."""
    return [await serve(watch_auth="required", change_poll_interval=0.05) for _ in range(2)]


async def on_the_map(app: VendorApp) -> None:
    await app.ping(LAT, LONG)
    await app.expect("ack")


STATEMENTS = [
    (SOFT.format("vendors", "id"), False),
    ('DELETE FROM "vendors" WHERE "id" = $1', False),
    (SOFT.format("users", "clerkId"), True),
    ('DELETE FROM "users" WHERE "clerkId" = $1', True),
]


async def test_a_deleted_user_is_disconnected_everywhere(
    servers: list[Running], database_url: str, direct: Any
) -> None:
    """A removed vendor or user must not report, watch, be on a map or reconnect, on any process.

    Removed means marked as deleted or deleted, the vendor or its user.
    """
    other, watching, *outs = await seed.seed(database_url, 6)
    url, url2 = (server.url for server in servers)
    lock = asyncio.Lock()  # a connection does one thing at a time
    async with (
        CustomerApp(url, watching.clerk_id) as customer,
        CustomerApp(url2, watching.clerk_id) as customer2,
        VendorApp(url2, other.clerk_id) as stays,
    ):
        await on_the_map(stays)
        for view in (customer, customer2):
            await view.watch("w", HERE)
        await asyncio.gather(
            *(
                thrown_out(servers, direct, lock, one, statement, by_user)
                for one, (statement, by_user) in zip(outs, STATEMENTS, strict=True)
            )
        )
        await customer.sees("w", {other.vendor_id: (LAT, LONG)})
        await customer2.sees("w", {other.vendor_id: (LAT, LONG)})
        assert stays.close_code is None
        await on_the_map(stays)


async def thrown_out(
    servers: list[Running], direct: Any, lock: asyncio.Lock, out: SeededVendor, statement: str, by_user: bool
) -> None:
    """Deletes one vendor or user; returns the outcome of each of its connections and attempts to reconnect."""
    url, url2 = (server.url for server in servers)
    async with (
        CustomerApp(url2, out.clerk_id) as own_view,
        VendorApp(url, out.clerk_id) as first,
        VendorApp(url2, out.clerk_id) as second,
    ):
        for app in (first, second):
            await on_the_map(app)
        await own_view.watch("w", HERE)
        await eventually(lambda: out.vendor_id in own_view.views["w"], "the vendor on its own map")
        async with lock:
            await direct.execute(statement, out.clerk_id if by_user else out.vendor_id)
        assert await first.closed() == 4404
        assert await second.closed() == 4404
        if by_user:
            assert await own_view.closed() == 4401
            users = [server.server.change_poller.deleted_users for server in servers]
            await eventually(lambda: all(out.clerk_id in gone for gone in users), "both processes knowing of it")
        else:
            assert own_view.close_code is None
    for server in servers:
        async with VendorApp(server.url, out.clerk_id, out.vendor_id) as again:
            assert await again.closed() == (4401 if by_user else 4404)
        async with CustomerApp(server.url, out.clerk_id) as again_looking:
            if by_user:
                assert await again_looking.closed() == 4401
                assert "was deleted" in again_looking.messages[0]["message"]
            else:
                await again_looking.watch("w", HERE)
        bearer = {"Authorization": f"Bearer {make_token(SECRET, out.clerk_id, 60)}"}
        async with aiohttp.ClientSession(headers=bearer) as session:
            body = {"lat": LAT, "long": LONG}
            async with session.post(f"{server.url}/v1/vendors/{out.vendor_id}/locations", json=body) as response:
                assert response.status == (401 if by_user else 404)
            async with session.get(f"{server.url}/v1/vendors/nearby", params=body) as response:
                assert response.status == (401 if by_user else 200)


async def test_a_page_of_a_deleted_user(servers: list[Running], vendors: list[SeededVendor], direct: Any) -> None:
    """The event stream of a deleted user ends like a socket, with the reason."""
    async with EventSource(servers[0].url, vendors[0].clerk_id) as page:
        assert (await page.open(lat=str(LAT), long=str(LONG), radius="1000")).status == 200
        await page.expect("snapshot")
        await direct.execute(SOFT.format("users", "clerkId"), vendors[0].clerk_id)
        assert "deleted" in (await page.expect("error"))["message"]
        await eventually(lambda: not page.reading, "the end of the stream")
        assert (await page.open(lat=str(LAT), long=str(LONG), radius="1000")).status == 401


async def test_a_restored_user_is_back(servers: list[Running], vendors: list[SeededVendor], direct: Any) -> None:
    """A user is accepted after the deletion was reverted, or after being created again with the same account."""
    one = vendors[0]
    await direct.execute(SOFT.format("users", "clerkId"), one.clerk_id)
    gone = [server.server.change_poller.deleted_users for server in servers]
    await eventually(lambda: all(one.clerk_id in users for users in gone), "both processes knowing of it")
    await direct.execute('UPDATE "users" SET "deletedAt" = NULL WHERE "clerkId" = $1', one.clerk_id)
    await eventually(lambda: not any(one.clerk_id in users for users in gone), "both processes knowing of it")
    async with VendorApp(servers[0].url, one.clerk_id) as app:
        await app.expect("hello")


async def test_a_process_knows_from_its_start(serve: Serve, vendors: list[SeededVendor], direct: Any) -> None:
    """A user who was deleted while no process ran is refused, too."""
    marked, deleted, stays, *_ = vendors
    await direct.execute(SOFT.format("users", "clerkId"), marked.clerk_id)
    await direct.execute('DELETE FROM "users" WHERE "clerkId" = $1', deleted.clerk_id)
    server = await serve(watch_auth="required", change_poll_interval=0.05)
    await eventually(lambda: server.server.change_poller.polls > 0, "a first poll")
    for one, code in ((marked, 4401), (deleted, 4401), (stays, None)):
        async with CustomerApp(server.url, one.clerk_id) as customer:
            if code is None:
                await customer.watch("w", HERE)
            else:
                assert await customer.closed() == code


async def test_a_changed_card_is_seen(servers: list[Running], vendors: list[SeededVendor], direct: Any) -> None:
    """A vendor's new name, status or picture from the backend is shown on each process."""
    one = vendors[0]
    async with (
        CustomerApp(servers[1].url, vendors[1].clerk_id) as customer,
        VendorApp(servers[0].url, one.clerk_id) as vendor,
    ):
        await on_the_map(vendor)
        await customer.watch("w", HERE)
        await customer.sees("w", {one.vendor_id: (LAT, LONG)})
        await direct.execute(
            'UPDATE "vendors" SET "name" = $2, "open" = false, "primaryImage" = $3 WHERE "id" = $1',
            one.vendor_id,
            "Zapiekanki",
            "https://images.example/z.jpg",
        )

        def shown() -> bool:
            card = customer.views["w"].get(one.vendor_id, {})
            return (card.get("name"), card.get("open"), card.get("primaryImage")) == (
                "Zapiekanki",
                False,
                "https://images.example/z.jpg",
            )

        await eventually(shown, "the card as it is now")
        assert vendor.close_code is None


async def test_a_vendor_that_changes_hands(servers: list[Running], vendors: list[SeededVendor], direct: Any) -> None:
    """A former owner of a vendor must not report its position any more."""
    one, other, *_ = vendors
    async with VendorApp(servers[0].url, one.clerk_id) as before:
        await on_the_map(before)
        await direct.execute(
            'UPDATE "vendors" SET "userId" = (SELECT "id" FROM "users" WHERE "clerkId" = $2) WHERE "id" = $1',
            one.vendor_id,
            other.clerk_id,
        )
        assert await before.closed() == 4403
    async with VendorApp(servers[0].url, other.clerk_id, one.vendor_id) as after:
        await on_the_map(after)


async def test_transactions_that_commit_out_of_order(
    servers: list[Running], vendors: list[SeededVendor], direct: Any, database_url: str
) -> None:
    """A deletion in a long transaction takes effect once committed, even if later changes were seen before it."""
    slow, quick, watching, *_ = vendors
    long_lasting = await asyncpg.connect(database_url)
    async with (
        VendorApp(servers[0].url, slow.clerk_id) as first,
        VendorApp(servers[0].url, quick.clerk_id) as second,
    ):
        await first.expect("hello")
        await second.expect("hello")
        change_poller = servers[0].server.change_poller
        transaction = long_lasting.transaction()
        await transaction.start()
        await long_lasting.execute(SOFT.format("vendors", "id"), slow.vendor_id)
        await direct.execute(SOFT.format("vendors", "id"), quick.vendor_id)
        assert await second.closed() == 4404
        for number in range(3):
            await direct.execute('UPDATE "vendors" SET "name" = $2 WHERE "id" = $1', watching.vendor_id, f"n{number}")
            before = change_poller.polls
            await eventually(lambda before=before: change_poller.polls > before + 2, "some polls")  # type: ignore[misc]
        assert first.close_code is None
        await transaction.commit()
        assert await first.closed() == 4404
    await long_lasting.close()
    # known rows are not read again forever
    before = change_poller.polls
    await eventually(lambda: change_poller.polls > before + 4, "some polls")
    assert not change_poller._seen


async def test_a_vendor_that_connects_while_it_is_deleted(
    servers: list[Running], vendors: list[SeededVendor], direct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion between reading a vendor and its first ping is detected."""
    server, one = servers[0].server, vendors[0]
    durable = server.dataloader.durable

    async def slow(row: VendorRow) -> Any:
        polls = server.change_poller.polls
        await direct.execute(SOFT.format("vendors", "id"), row.vendor_id)
        await eventually(lambda: server.change_poller.polls > polls + 2, "the change poller having seen it")
        return await durable(row)

    monkeypatch.setattr(server.dataloader, "durable", slow)
    async with VendorApp(servers[0].url, one.clerk_id) as app:
        assert await app.closed() == 4404


async def test_many_changes_at_once(
    servers: list[Running], vendors: list[SeededVendor], direct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bulk change by the backend is read in pages, and no row is missed."""
    monkeypatch.setattr("streamer.accounts.change_poller.PAGE", 7)
    one = vendors[0]
    async with VendorApp(servers[0].url, one.clerk_id) as app:
        await app.expect("hello")
        async with direct.transaction():
            for number in range(30):
                await direct.execute('UPDATE "vendors" SET "name" = $1 WHERE "id" <> $2', str(number), one.vendor_id)
            await direct.execute(SOFT.format("vendors", "id"), one.vendor_id)
        assert await app.closed() == 4404


async def test_all_at_once(servers: list[Running], vendors: list[SeededVendor], direct: Any) -> None:
    """After the backend truncates the table no vendor is on the map."""
    async with VendorApp(servers[0].url, vendors[0].clerk_id) as app:
        await app.expect("hello")
        await direct.execute('TRUNCATE "vendors" CASCADE')
        assert await app.closed() == 4404


async def test_an_outage_is_survived(servers: list[Running], monkeypatch: pytest.MonkeyPatch, direct: Any) -> None:
    """While PostgreSQL is down no client is disconnected; changes of that time apply afterwards."""
    from streamer.errors import Unavailable

    server = servers[0].server
    changes = server.store.changes

    async def away(*_: Any) -> Any:
        raise Unavailable("PostgreSQL is held by the test")

    monkeypatch.setattr(server.store, "changes", away)
    polls = server.change_poller.polls
    async with VendorApp(servers[0].url, "clerk_seed_000001") as app:
        await app.expect("hello")
        await direct.execute(SOFT.format("users", "clerkId"), "clerk_seed_000001")
        await asyncio.sleep(0.3)
        assert app.close_code is None
        assert server.change_poller.polls <= polls + 1
        monkeypatch.setattr(server.store, "changes", changes)
        started = now_ms()
        assert await app.closed() == 4404
        assert now_ms() - started < 10_000
