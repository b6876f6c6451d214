"""`/v1/alerts`: what only an owner can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from streamer.transport.http_alerts import CHANGES_AHEAD
from tests.conftest import Serve, connected
from tests.support.apps import SECRET, circle, described, eventually, now_ms

KEY = "a-key-for-alerts-a-key-for-alerts"
ASKED: dict[str, Any] = {
    "area": circle(52.2297, 21.0122, 500),
    "on": ["left", "entered"],
    "url": "https://hooks.example.com/alerts/1",
}
SHAPES = described(("NewAlert", "Alert", "Alerts", "Deliveries", "Problem", "TestSent"))


@asynccontextmanager
async def signed_in(url: str, clerk_id: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a user's token."""
    headers = {"Authorization": f"Bearer {make_token(SECRET, clerk_id, 600)}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        yield session


async def create(session: aiohttp.ClientSession, key: str | None = None, **changed: Any) -> dict[str, Any]:
    headers = {} if key is None else {"Idempotency-Key": key}
    async with session.post("/v1/alerts", json={**ASKED, **changed}, headers=headers) as answer:
        body: dict[str, Any] = await answer.json()
        assert answer.status == 201, body
        SHAPES["NewAlert"].validate(body)
        return body


async def refusal(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    body = await answer.json(content_type="application/problem+json")
    SHAPES["Problem"].validate(body)
    return answer.status, body["code"]


async def test_an_alert_is_created_changed_and_deleted(serve: Serve, database_url: str) -> None:
    """An owner must be able to read, change and delete an alert, or its webhooks would never stop."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as session:
        created = await create(session, metadata={"user": 7}, open=True)
        secret = created.pop("secret")
        assert secret.startswith("whsec_")
        assert created["on"] == ["entered", "left"]
        assert created["quiet"] == 600_000
        path = f"/v1/alerts/{created['id']}"
        async with session.get(path) as answer:
            seen = await answer.json()
        SHAPES["Alert"].validate(seen)
        assert seen == created
        patch = {"vendors": [one.vendor_id], "open": None, "quiet": 0, "metadata": {"place": "home"}}
        async with session.patch(path, json=patch) as answer:
            changed = await answer.json()
        SHAPES["Alert"].validate(changed)
        assert changed["vendors"] == [one.vendor_id]
        assert "area" not in changed
        assert "open" not in changed
        assert changed["metadata"] == {"user": 7, "place": "home"}
        async with session.patch(path, json={"disabled": True}) as answer:
            assert (await answer.json())["disabled"]["reason"] == "by its owner"
        async with session.post(f"{path}/test") as answer:
            assert await refusal(answer) == (400, "ERR_INVALID_MESSAGE")
        async with session.patch(path, json={"disabled": False}) as answer:
            assert "disabled" not in await answer.json()
        async with session.delete(path) as answer:
            assert answer.status == 204
        for method in ("GET", "DELETE"):
            async with session.request(method, path) as answer:
                assert await refusal(answer) == (404, "ERR_ALERT_NOT_FOUND")
    async with connected(database_url) as connection:
        (stored,) = await connection.fetch('SELECT "url", "secret", "definition" FROM "streamer_alerts"')
        assert tuple(stored) == ("", b"", "{}")


async def test_of_two_changes_at_the_same_moment_neither_undoes_the_other(serve: Serve, database_url: str) -> None:
    """A user changes the quiet time while the backend changes the metadata: neither change is lost."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as session, connected(database_url) as viewer:
        path = f"/v1/alerts/{(await create(session))['id']}"

        async def change(**patch: Any) -> int:
            async with session.patch(path, json=patch) as answer:
                return answer.status

        async def both_wait() -> bool:
            found: int = await viewer.fetchval(
                """
                SELECT count(DISTINCT "pid") FROM pg_locks JOIN pg_stat_activity USING ("pid")
                WHERE NOT "granted" AND "datname" = current_database()
                """
            )
            return found == 2

        async def begun() -> bool:
            async with session.get(path) as answer:
                return "startedAt" in await answer.json()

        await eventually(begun, "an alert that has begun, so that only the changes wait")
        async with connected(database_url) as holder, holder.transaction():
            await holder.execute('SELECT FROM "streamer_alerts" FOR UPDATE')
            changes = [asyncio.create_task(change(quiet=7)), asyncio.create_task(change(metadata={"place": "home"}))]
            await eventually(both_wait, "two changes that wait for the alert")
        assert await asyncio.gather(*changes) == [200, 200]
        async with session.get(path) as answer:
            seen = await answer.json()
        assert (seen["quiet"], seen["metadata"]) == (7, {"place": "home"})


async def test_secrets_are_not_stored_as_they_are(serve: Serve, database_url: str) -> None:
    """Otherwise a reader of a backup could sign events in the server's name."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as session:
        secret = (await create(session))["secret"]
    async with connected(database_url) as connection:
        rows = await connection.fetch('SELECT to_jsonb(a)::text, "secret" FROM "streamer_alerts" a')
    for text, stored in rows:
        assert secret not in text
        assert secret.encode() not in stored


async def test_an_alert_is_its_owners_alone(serve: Serve, database_url: str) -> None:
    """Another user must not even see that an alert exists."""
    one, two = await seed.seed(database_url, 2)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as owner, signed_in(server.url, two.clerk_id) as other:
        path = f"/v1/alerts/{(await create(owner))['id']}"
        for method, rest in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test")):
            async with other.request(method, path + rest, json={"quiet": 1} if method == "PATCH" else None) as answer:
                assert await refusal(answer) == (404, "ERR_ALERT_NOT_FOUND")
        async with other.get("/v1/alerts") as answer:
            assert await answer.json() == {"alerts": [], "next": None}
    async with aiohttp.ClientSession(server.url) as nobody, nobody.get("/v1/alerts") as answer:
        assert await refusal(answer) == (401, "ERR_UNAUTHORIZED")
    stranger = signed_in(server.url, "somebody the backend does not know")
    async with stranger as session, session.post("/v1/alerts", json=ASKED) as answer:
        assert await refusal(answer) == (403, "ERR_FORBIDDEN")


async def test_creating_again_with_the_same_key_creates_nothing(serve: Serve, database_url: str) -> None:
    """A backend that got no answer retries; a second alert would send all events twice."""
    one, two = await seed.seed(database_url, 2)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as session:
        answers = await asyncio.gather(*(create(session, "key 1") for _ in range(5)))
        assert all(answer == answers[0] for answer in answers)
        assert (await create(session, "key 2"))["id"] != answers[0]["id"]
        async with session.post("/v1/alerts", json={**ASKED, "quiet": 1}, headers={"Idempotency-Key": "key 1"}) as said:
            assert await refusal(said) == (400, "ERR_INVALID_MESSAGE")
    async with signed_in(server.url, two.clerk_id) as session:
        assert (await create(session, "key 1"))["id"] != answers[0]["id"]


async def test_lists_come_page_by_page(serve: Serve, database_url: str) -> None:
    """Lists are paged; no alert may be missing between two pages."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as session:
        ids = {(await create(session))["id"] for _ in range(5)}
        found: list[str] = []
        path = "/v1/alerts?limit=2"
        while path:
            async with session.get(path) as answer:
                page = await answer.json()
                SHAPES["Alerts"].validate(page)
                found += [alert["id"] for alert in page["alerts"]]
                following = answer.links.get("next")
                assert (page["next"] is None) == (following is None)
                path = "" if following is None else str(following["url"]).removeprefix(server.url)
        assert len(found) == 5
        assert set(found) == ids
        async with session.get(f"/v1/alerts/{found[0]}/deliveries") as answer:
            assert await answer.json() == {"deliveries": [], "next": None}


async def test_a_user_has_so_many_alerts_at_most(serve: Serve, database_url: str) -> None:
    """Without the limit one user could make the processes evaluate a million areas."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY, alerts_per_user=3)
    async with signed_in(server.url, one.clerk_id) as session:

        async def attempt() -> int:
            async with session.post("/v1/alerts", json=ASKED) as answer:
                return answer.status

        statuses = await asyncio.gather(*(attempt() for _ in range(8)))
        assert sorted(statuses) == [201] * 3 + [400] * 5
        async with session.get("/v1/alerts") as answer:
            alerts = (await answer.json())["alerts"]
        async with session.delete(f"/v1/alerts/{alerts[0]['id']}") as answer:
            assert answer.status == 204
        await create(session)
        async with session.post("/v1/alerts", json=ASKED) as answer:
            assert await refusal(answer) == (400, "ERR_TOO_MANY_ALERTS")


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"area": None}, "ERR_MISSING_FIELD"),
        ({"vendors": ["a"]}, "ERR_INVALID_MESSAGE"),
        ({"area": circle(52, 21, 50_000)}, "ERR_AREA_TOO_LARGE"),
        ({"area": None, "vendors": ["v"] * 201}, "ERR_AREA_TOO_LARGE"),
        ({"area": {"center": {"lat": 91, "long": 0}, "radius": 1}}, "ERR_INVALID_COORDINATES"),
        ({"on": []}, "ERR_INVALID_MESSAGE"),
        ({"on": ["moved"]}, "ERR_INVALID_MESSAGE"),
        ({"on": None}, "ERR_MISSING_FIELD"),
        ({"url": None}, "ERR_MISSING_FIELD"),
        ({"url": "http://hooks.example.com/"}, "ERR_INVALID_URL"),
        ({"url": "https://127.0.0.1/"}, "ERR_INVALID_URL"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "ERR_INVALID_URL"),
        ({"url": "https://user:word@hooks.example.com/"}, "ERR_INVALID_URL"),
        ({"quiet": -1}, "ERR_INVALID_MESSAGE"),
        ({"expires": 1_000_000_000_000}, "ERR_INVALID_TIMESTAMP"),
        ({"metadata": {"a": "x" * 5000}}, "ERR_INVALID_MESSAGE"),
        ({"metadata": {"a": [{"\0": 1}]}}, "ERR_INVALID_MESSAGE"),
    ],
)
async def test_what_can_not_be_is_refused(serve: Serve, database_url: str, changed: dict[str, Any], code: str) -> None:
    """An alert that can never send an event must be refused with the reason."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as session:
        async with session.post("/v1/alerts", json={**ASKED, **changed}) as answer:
            assert await refusal(answer) == (400, code)
        created = await create(session, expires=now_ms() + 60_000)
        async with session.patch(f"/v1/alerts/{created['id']}", json=changed) as answer:
            if changed not in ({"vendors": ["a"]},):  # a list replaces the area
                assert answer.status == 400


async def test_without_a_key_alerts_are_off(serve: Serve, database_url: str) -> None:
    """Without a key, secrets would have to be stored in plain text."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with signed_in(server.url, one.clerk_id) as session, session.post("/v1/alerts", json=ASKED) as answer:
        assert answer.status == 403
        assert "STREAMER_ALERT_KEY" in (await answer.json(content_type=None))["detail"]


async def test_alerts_are_created_changed_and_tested_at_a_rate(serve: Serve, database_url: str) -> None:
    """Each test sends a request to a URL of the user's choice, so a loop of them must be limited."""
    one, two = await seed.seed(database_url, 2)
    server = await serve(alert_key=KEY, alert_changes=0.001)
    async with signed_in(server.url, one.clerk_id) as session, signed_in(server.url, two.clerk_id) as other:
        created = await create(session)
        path = f"/v1/alerts/{created['id']}"
        for _ in range(CHANGES_AHEAD - 1):
            async with session.patch(path, json={"quiet": 0}) as answer:
                assert answer.status == 200
        for request in (
            session.post("/v1/alerts", json=ASKED),
            session.patch(path, json={"quiet": 0}),
            session.post(f"{path}/test"),
        ):
            async with request as answer:
                assert int(answer.headers["Retry-After"]) > 0
                assert await refusal(answer) == (429, "ERR_RATE_LIMITED")
        await create(other)
        async with session.delete(path) as answer:
            assert answer.status == 204


async def test_alerts_that_nobody_looks_at_are_warned_of(serve: Serve, database_url: str) -> None:
    """A process without the key evaluates no alerts, and must log a warning for the operator."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve(alert_key=KEY)
    async with signed_in(server.url, one.clerk_id) as session:
        await create(session)
    with capture_logs() as logs:
        without = await serve()
        await eventually(
            lambda: any("alerts are off here" in entry["event"] and entry["alerts"] == 1 for entry in logs),
            "a warning at the start",
        )
        async with signed_in(without.url, one.clerk_id) as session:
            for _ in range(2):
                async with session.get("/v1/alerts") as answer:
                    assert answer.status == 403
        assert len([entry for entry in logs if "a client requested alerts" in entry["event"]]) == 1
