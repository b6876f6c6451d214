"""Alerts from a vendor's ping to a receiver: events arrive signed and in order, none missing or invented."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from streamer.alerts import evaluator
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, seed
from tests.conftest import Serve, connected
from tests.e2e.transport.test_http_alerts import signed_in
from tests.support.apps import VendorApp, circle, described, eventually, now_ms
from tests.support.process import ServerProcess
from tests.support.receiver import Receiver

KEY = "a-key-for-alerts-a-key-for-alerts"
HERE = (52.2297, 21.0122)
FAR = (52.2897, 21.0122)
AREA = circle(*HERE, 500)
ALL = ["entered", "left", "opened", "closed", "online", "offline"]
WEBHOOK = described(("Webhook", "Deliveries"))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that accepts all webhooks."""
    async with Receiver() as started:
        yield started


async def alert(session: aiohttp.ClientSession, receiver: Receiver, path: str = "", **changed: Any) -> str:
    """Creates an alert and waits until it has started; returns its id."""
    asked = {"area": AREA, "on": ALL, "quiet": 0, "url": receiver.url + path, **changed}
    async with session.post("/v1/alerts", json={k: v for k, v in asked.items() if v is not None}) as answer:
        body = await answer.json()
        assert answer.status == 201, body
    id: str = body["id"]
    receiver.secrets[id] = body["secret"]
    await begun(session, id)
    return id


async def begun(session: aiohttp.ClientSession, id: str) -> None:
    async def looked_at() -> bool:
        async with session.get(f"/v1/alerts/{id}") as answer:
            return "startedAt" in await answer.json()

    await eventually(looked_at, "an alert that has begun")


async def deliveries(session: aiohttp.ClientSession, id: str) -> list[dict[str, Any]]:
    async with session.get(f"/v1/alerts/{id}/deliveries") as answer:
        body = await answer.json()
    WEBHOOK["Deliveries"].validate(body)
    found: list[dict[str, Any]] = body["deliveries"]
    return found


async def settings_of(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"alert_key": KEY, "alert_development_hosts": (receiver.host,), **more}


async def test_events_are_sent_in_order(serve: Serve, database_url: str, receiver: Receiver) -> None:
    """A user gets the events of a truck that enters, closes, opens and leaves, in this order."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(**await settings_of(receiver))
    async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
        await app.ping(*FAR)
        await app.acked(1)
        id = await alert(session, receiver, metadata={"user": 7})
        await app.ping(*HERE)
        await receiver.gets("entered")
        await app.send({"type": "status", "open": False})
        await receiver.gets("entered", "closed")
        await app.send({"type": "status", "open": True})
        await receiver.gets("entered", "closed", "opened")
        await app.ping(*FAR)
        await receiver.gets("entered", "closed", "opened", "left")
        for event in receiver.events():
            WEBHOOK["Webhook"].validate(event)
            assert event["alertId"] == id
            assert event["metadata"] == {"user": 7}
            assert event["vendor"]["vendorId"] == one.vendor_id
        assert receiver.events()[0]["vendor"]["lat"] == HERE[0]

        async def all_delivered() -> bool:
            return [each["state"] for each in await deliveries(session, id)] == ["delivered"] * 4

        await eventually(all_delivered, "deliveries that tell of the answers")
        assert (await deliveries(session, id))[0]["attempts"][0]["status"] == 204


async def test_who_is_there_already_is_no_event(serve: Serve, database_url: str, receiver: Receiver) -> None:
    """Otherwise a new alert would start with an event for each vendor that is already inside."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(**await settings_of(receiver))
    async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
        await app.ping(*HERE)
        await app.acked(1)
        await alert(session, receiver)
        listed = await alert(session, receiver, area=None, vendors=[one.vendor_id])
        await app.ping(*FAR)
        await receiver.gets("left")
        await app.send({"type": "status", "open": False})
        await receiver.gets("closed", alert_id=listed)


async def test_a_test_is_sent_and_a_changed_alert_tells_other_things(
    serve: Serve, database_url: str, receiver: Receiver
) -> None:
    """A user who moves an alert must get events of the new area, and none of the old one."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(**await settings_of(receiver))
    async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
        await app.ping(*FAR)
        await app.acked(1)
        id = await alert(session, receiver)
        async with session.post(f"/v1/alerts/{id}/test") as answer:
            assert answer.status == 202
        await receiver.gets("alert.test")
        async with session.patch(f"/v1/alerts/{id}", json={"area": circle(*FAR, 500)}) as answer:
            assert answer.status == 200
        await begun(session, id)
        await app.ping(*HERE)
        await receiver.gets("alert.test", "left")
        async with session.delete(f"/v1/alerts/{id}") as answer:
            assert answer.status == 204
        other = await alert(session, receiver, area=circle(*FAR, 400))
        await app.ping(*FAR)
        await receiver.gets("entered", alert_id=other)
        assert receiver.kinds(id) == ["alert.test", "left"]


async def test_a_receiver_that_was_away_gets_all_in_order(serve: Serve, database_url: str, receiver: Receiver) -> None:
    """Backends restart: missed webhooks must be sent afterwards, with the same ids, oldest first."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(**await settings_of(receiver))
    async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
        await app.ping(*FAR)
        await app.acked(1)
        id = await alert(session, receiver)
        receiver.answer = lambda _: 503
        receiver.headers = {"Retry-After": "7200"}
        await app.ping(*HERE)
        await eventually(lambda: len(receiver.received) == 1, "a first attempt")

        async def noted() -> bool:
            return any(each["attempts"] for each in await deliveries(session, id))

        await eventually(noted, "its answer")
        assert (await deliveries(session, id))[0]["nextAttempt"] - now_ms() > 6_000_000  # rather than in 5 s
        receiver.headers = {}
        for count, place in ((2, FAR), (3, HERE)):
            await app.ping(*place)

            async def waiting(count: int = count) -> bool:
                return len(await deliveries(session, id)) == count

            await eventually(waiting, f"{count} events that wait")
        await receiver.deaf()
        await due_now(database_url)

        async def refused() -> bool:
            return any("error" in attempt for each in await deliveries(session, id) for attempt in each["attempts"])

        await eventually(refused, "an attempt that was refused")
        await receiver.listen()
        receiver.answer = lambda _: 200
        await due_now(database_url)
        await receiver.gets("entered", "left", "entered")
        # The second and third event were not sent before the first was accepted.
        ids = [each.id for each in receiver.received]
        assert ids == sorted(ids)


async def due_now(database_url: str) -> None:
    """Shortens the pause until the next attempt."""
    async with connected(database_url) as connection:
        await connection.execute(
            'UPDATE "streamer_alert_events" SET "nextAttempt" = now() AT TIME ZONE \'UTC\' '
            'WHERE "nextAttempt" IS NOT NULL AND "log" <> \'[]\''
        )


async def test_a_slow_receiver_delays_nobody_else(serve: Serve, database_url: str, receiver: Receiver) -> None:
    """One backend that hangs must not block all requests."""
    vendors = await seed.seed(database_url, 4)
    async with Receiver() as slow, AsyncExitStack() as stack:
        slow.hold = asyncio.Event()
        hosts = (receiver.host, slow.host)
        server = await serve(
            alert_key=KEY,
            alert_development_hosts=hosts,
            alert_deliveries=4,
            alert_host_deliveries=2,
            alert_timeout=60.0,
        )
        session = await stack.enter_async_context(signed_in(server.url, vendors[0].clerk_id))
        apps = [await stack.enter_async_context(VendorApp(server.url, each.clerk_id)) for each in vendors]
        for app in apps:
            await app.ping(*FAR)
            await app.acked(1)
        for _ in range(5):
            await alert(session, slow)
        quick = await alert(session, receiver)
        for app in apps:
            await app.ping(*HERE)
        await receiver.gets(*["entered"] * 4, alert_id=quick)
        assert slow.received == []
        deliverer = server.server.deliverer
        assert deliverer is not None
        # Requests to the fast one end shortly after it was called; those to the slow one remain.
        await eventually(lambda: deliverer.running == 2, "two requests to the slow one")
        slow.hold.set()
        await eventually(lambda: len(slow.events()) == 20, "the slow one's events")


async def disabled(session: aiohttp.ClientSession, alert_id: str, why: str) -> None:
    """Waits until an alert is disabled for a reason that contains this text."""

    async def found() -> bool:
        async with session.get(f"/v1/alerts/{alert_id}") as answer:
            return why in (await answer.json()).get("disabled", {}).get("reason", "")

    await eventually(found, f"an alert that is disabled: {why}")


async def test_410_ends_the_alert(
    serve: Serve, database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that answers 410 is permanently gone and must get no more requests."""
    monkeypatch.setattr(evaluator, "COUNT_EVERY", 0.5)
    (one,) = await seed.seed(database_url, 1)
    server = await serve(**await settings_of(receiver))
    async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
        await app.ping(*FAR)
        await app.acked(1)
        id = await alert(session, receiver)
        receiver.answer = lambda _: 410
        await app.ping(*HERE)
        await disabled(session, id, "410")

        async def counted() -> bool:
            async with session.get("/metrics") as answer:
                return "\nstreamer_alerts_disabled 1.0\n" in await answer.text()

        await eventually(counted, "a metric that counts it")
        other = await alert(session, receiver, "/other")
        receiver.answer = lambda _: 204
        await app.ping(*FAR)
        await receiver.gets("left", alert_id=other)
        assert receiver.kinds(id) == []
        assert [each["state"] for each in await deliveries(session, id)] == ["given up"]


async def test_an_alert_that_fails_for_days_is_disabled(serve: Serve, database_url: str, receiver: Receiver) -> None:
    """Otherwise a forgotten alert would silently cost requests forever."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(**await settings_of(receiver))
    async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
        await app.ping(*FAR)
        await app.acked(1)
        id = await alert(session, receiver)
        receiver.answer = lambda _: 500
        await app.ping(*HERE)
        await eventually(lambda: len(receiver.received) == 1, "a first attempt")
        async with connected(database_url) as connection:

            async def failing() -> bool:
                since: object = await connection.fetchval('SELECT "failingSince" FROM "streamer_alerts"')
                return since is not None

            await eventually(failing, "a failure that is noted")
            await connection.execute(
                'UPDATE "streamer_alerts" SET "failingSince" = "failingSince" - INTERVAL \'6 days\'; '
                'UPDATE "streamer_alert_events" SET "attempts" = 9'
            )
        await due_now(database_url)
        await disabled(session, id, "failed for too long")
        async with session.patch(f"/v1/alerts/{id}", json={"disabled": False}) as answer:
            assert "failingSince" not in await answer.json()
        await begun(session, id)
        receiver.answer = lambda _: 204
        await app.ping(*FAR)
        await receiver.gets("left", alert_id=id)


async def test_logs_have_no_positions(serve: Serve, database_url: str, receiver: Receiver) -> None:
    """Logs are kept for longer than positions, and read by more people."""
    (one,) = await seed.seed(database_url, 1)
    with capture_logs() as logs:
        server = await serve(**await settings_of(receiver))
        async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
            await app.ping(*FAR)
            await app.acked(1)
            id = await alert(session, receiver)
            receiver.answer = lambda _: 410
            await app.ping(*HERE)

            await eventually(
                lambda: any(entry.get("alert") == id for entry in logs), "an alert that its receiver ended"
            )
        assert not [entry for entry in logs if str(HERE[0]) in repr(entry) or str(FAR[0]) in repr(entry)]


async def test_redirects_are_not_followed(serve: Serve, database_url: str, receiver: Receiver) -> None:
    """A public receiver could redirect the server into its internal network."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(**await settings_of(receiver))
    async with signed_in(server.url, one.clerk_id) as session:
        id = await alert(session, receiver)
        receiver.answer = lambda _: 307
        receiver.headers = {"Location": "/elsewhere"}
        async with session.post(f"/v1/alerts/{id}/test") as answer:
            assert answer.status == 202

        async def failed() -> bool:
            return any(each["attempts"] for each in await deliveries(session, id))

        await eventually(failed, "an attempt")
        assert (await deliveries(session, id))[0]["attempts"][0]["status"] == 307
        assert len(receiver.received) == 1


async def test_a_killed_process_misses_and_invents_nothing(
    database_url: str,
    redis_url: str,
    serving_url: str,
    receiver: Receiver,
    record_property: Callable[[str, object], None],
) -> None:
    """A process is killed: another takes over its alerts within seconds, and compares stored and current states.

    It prints the seconds until the last event of these alerts was found; the goal is 5.
    """
    vendors = await seed.seed(database_url, 6)
    settings: dict[str, Any] = {"alert_key": KEY, "alert_development_hosts": receiver.host}
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(ServerProcess(serving_url, redis_url, **settings)) for _ in range(2)
        ]
        session = await stack.enter_async_context(signed_in(second.url, vendors[0].clerk_id))
        apps = [await stack.enter_async_context(VendorApp(second.url, each.clerk_id)) for each in vendors]
        for app in apps:
            await app.ping(*FAR)
            await app.acked(1)
        ids = [await alert(session, receiver, on=["entered", "left"]) for _ in range(8)]
        for app in apps[:3]:
            await app.ping(*HERE)
        for id in ids:
            await receiver.gets(*["entered"] * 3, alert_id=id)
        await first.end(signal.SIGKILL)
        killed, killed_at = time.monotonic(), now_ms()
        # While the killed process's alerts are not evaluated, some vendors leave, some enter, some stay.
        for number, app in enumerate(apps):
            await app.ping(*(FAR if number in (0, 1, 5) else HERE))
        expected = {
            f"{vendors[n].vendor_id} {kind}" for n, kind in ((0, "left"), (1, "left"), (3, "entered"), (4, "entered"))
        }

        def told(id: str) -> list[str]:
            events = receiver.events(id)[3:]
            return [f"{event['vendor']['vendorId']} {event['type'].removeprefix('vendor.')}" for event in events]

        for id in ids:
            await eventually(lambda id=id: set(told(id)) == expected, f"{expected}, not {told(id)}")  # type: ignore[misc]  # mypy can't type a default
        found = (max(event["at"] for event in receiver.events()) - killed_at) / 1000
        told_after = max(each.at for each in receiver.received) - killed
        record_property("took_over_seconds", found)
        print(f"after the kill the last event was found within {found:.1f} s and told within {told_after:.1f} s")
        async with connected(database_url) as connection:
            (count,) = await connection.fetchrow('SELECT count(*) FROM "streamer_alert_events"')
        assert count == len(ids) * (3 + 4)
        assert all(len(told(id)) == 4 for id in ids)


async def test_a_restart_of_postgresql_loses_nothing(
    postgres_server: PostgresServer, redis_url: str, receiver: Receiver
) -> None:
    """Events during an outage of the database must be sent once it is back."""
    await migrate.upgrade(postgres_server.url)
    one, two = await seed.seed(postgres_server.url, 2)
    settings: dict[str, Any] = {"alert_key": KEY, "alert_development_hosts": receiver.host}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ServerProcess(postgres_server.url, redis_url, **settings))
        session = await stack.enter_async_context(signed_in(server.url, one.clerk_id))
        apps = [await stack.enter_async_context(VendorApp(server.url, each.clerk_id)) for each in (one, two)]
        for app in apps:
            await app.ping(*FAR)
            await app.acked(1)
        id = await alert(session, receiver)
        postgres_server.kill()
        stamps = now_ms()
        await apps[0].ping(*HERE, timestamp=stamps)
        await apps[1].ping(*HERE, timestamp=stamps)
        await asyncio.sleep(1.5)
        await apps[1].ping(*FAR, timestamp=stamps + 1000)
        await postgres_server.restart()
        await eventually(lambda: len(receiver.events(id)) == 3, f"three events, not {receiver.kinds(id)}")
        by_vendor = [e["type"] for e in receiver.events(id) if e["vendor"]["vendorId"] == two.vendor_id]
        assert by_vendor == ["vendor.entered", "vendor.left"]
