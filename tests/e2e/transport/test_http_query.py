"""Positions and history over HTTP, through the whole server, and with existing tracker apps."""

from __future__ import annotations

import asyncio
import io
import time
import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
import pytest

from streamer.accounts.tokens import make_token
from streamer.errors import Unavailable
from streamer.ingest.copy_rows import id_floor
from streamer.storage.queries import LOCATIONS
from streamer.storage.seed import SeededVendor
from streamer.storage.store import ID_SLACK_MS
from streamer.transport import http_ingest
from tests.conftest import Running, Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.unit.protocol.test_trackers import OWNTRACKS_BOOKLET, OWNTRACKS_IOS, TRACCAR_CLIENT_9

LAT, LONG = 52.2297, 21.0122
JSON = "application/json"
PROBLEM = "application/problem+json"


class Answer:
    """A response that has been read."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.type = response.content_type
        self.headers = response.headers
        self.links = response.links
        self.body = body

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    def refused(self, status: int, code: str) -> dict[str, Any]:
        """Returns the problem document, which the body must be."""
        problem: dict[str, Any] = self.json
        assert (self.status, self.type, problem["status"], problem["code"]) == (status, PROBLEM, status, code), problem
        assert problem["detail"]
        return problem


class Client:
    """An HTTP client of a user."""

    def __init__(self, session: aiohttp.ClientSession, url: str, vendor: SeededVendor) -> None:
        self.session = session
        self.url = url
        self.vendor = vendor
        self.token = make_token(SECRET, vendor.clerk_id, 600)
        self.bearer = {"Authorization": f"Bearer {self.token}"}

    @property
    def path(self) -> str:
        return f"/v1/vendors/{self.vendor.vendor_id}/locations"

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session.request(method, self.url + path, **options) as response:
            return Answer(response, await response.read())

    async def report(self, body: Any, **options: Any) -> Answer:
        """Posts pings as the vendor."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self.ask("POST", self.path, data=data, headers=self.bearer, **options)

    async def past(self, accept: str = JSON, **query: Any) -> Answer:
        """Reads the vendor's history as its owner."""
        return await self.ask("GET", self.path, params=query, headers={**self.bearer, "Accept": accept})


@asynccontextmanager
async def client_of(running: Running, vendor: SeededVendor) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(session, running.url, vendor)


@pytest.fixture
async def running(serve: Serve, vendors: list[SeededVendor]) -> Running:
    return await serve(max_age=1e5)  # the timestamps in the apps' documentation are years old


@pytest.fixture
async def client(running: Running, vendors: list[SeededVendor]) -> AsyncIterator[Client]:
    async with client_of(running, vendors[0]) as client:
        yield client


async def stored(direct: Any, vendor: SeededVendor) -> list[tuple[int, float, float]]:
    """Returns the rows of `locations`."""
    rows = await direct.fetch(
        'SELECT (EXTRACT(EPOCH FROM "timestamp") * 1000)::bigint, lat, long FROM "locations" WHERE "vendorId" = $1'
        " ORDER BY 1",
        vendor.vendor_id,
    )
    return [tuple(row) for row in rows]


def ping(timestamp: int, lat: float = LAT, long: float = LONG, **fields: Any) -> dict[str, Any]:
    return {"lat": lat, "long": long, "timestamp": timestamp, **fields}


# POST /v1/vendors/{id}/locations


async def test_pings_are_stored_when_answered(client: Client, direct: Any) -> None:
    """An app that gets 200 deletes its pings, so they must be in the database by then, for each form of the body."""
    now = now_ms()
    for n, body in enumerate(
        [
            ping(now - 5),
            [ping(now - 4), {"latitude": 1, "lng": 2, "timestamp": now - 3}],
            {"pings": [ping(now - 2)]},
            {"type": "pings", "pings": [ping(now - 1, seq=7)]},
            {"type": "ping", "lat": LAT, "lon": LONG, "timestamp": now},
        ]
    ):
        answer = await client.report(body)
        assert (answer.status, answer.type) == (200, JSON), answer.body
        assert answer.json == {"stored": 2 if n == 1 else 1, "rejected": [], "time": answer.json["time"]}
        assert answer.json["time"] >= now
    expected = [(now - n, LAT, LONG) for n in (5, 4, 3, 2, 1, 0)]
    expected[2] = (now - 3, 1.0, 2.0)
    assert await stored(direct, client.vendor) == expected


async def test_a_ping_without_time_has_the_time_of_arrival(client: Client, direct: Any) -> None:
    """A simple sensor without a clock can report."""
    before = now_ms()
    assert (await client.report({"lat": LAT, "long": LONG})).json["stored"] == 1
    ((timestamp, _, _),) = await stored(direct, client.vendor)
    assert before <= timestamp <= now_ms()


async def test_a_resend_is_stored_once_and_answered_alike(client: Client, direct: Any) -> None:
    """An app whose answer was lost resends: no ping may be duplicated or refused."""
    now = now_ms()
    body = [ping(now - n) for n in range(10)]
    for _ in range(3):
        assert (await client.report(body)).json["stored"] == 10
    assert (await client.report([*body, ping(now - 10)])).json["stored"] == 11
    assert len(await stored(direct, client.vendor)) == 11


async def test_each_ping_is_judged_by_itself(client: Client, direct: Any) -> None:
    """One bad ping of a backlog must not affect the others, and the answer must say which one and why."""
    now = now_ms()
    answer = await client.report(
        [
            ping(now - 3),
            ping(now - 2, lat=91),
            "x",
            {"lat": 1},
            ping(now + 3_600_000),
            ping(now - 1),
            {**ping(0), "timestamp": "then"},
        ]
    )
    assert answer.status == 200
    assert answer.json["stored"] == 2
    assert [(one["index"], one["code"]) for one in answer.json["rejected"]] == [
        (1, "ERR_INVALID_COORDINATES"),
        (2, "ERR_INVALID_MESSAGE"),
        (3, "ERR_MISSING_FIELD"),
        (4, "ERR_TIMESTAMP_IN_FUTURE"),
        (6, "ERR_INVALID_TIMESTAMP"),
    ]
    assert "91" in answer.json["rejected"][0]["message"]
    assert [row[0] for row in await stored(direct, client.vendor)] == [now - 3, now - 1]


async def test_an_index_is_the_place_in_the_request(client: Client) -> None:
    """Pings buffered for a socket have a seq; the answer still numbers them from the request's first ping."""
    now = now_ms()
    answer = await client.report([ping(now, seq=41), ping(now, seq=50, lat=91), ping(now - 1, seq=51)])
    assert [one["index"] for one in answer.json["rejected"]] == [1]
    problem = (await client.report([ping(now, seq=3), ping(now, seq=3)])).refused(400, "ERR_INVALID_MESSAGE")
    assert "seq" in problem["detail"]


async def test_nothing_to_store_is_a_refusal(client: Client, direct: Any) -> None:
    """A client that reads only the status must not assume that its pings are stored."""
    problem = (await client.report(ping(now_ms(), lat=91))).refused(400, "ERR_INVALID_COORDINATES")
    assert "91" in problem["detail"]
    assert [one["index"] for one in problem["rejected"]] == [0]
    problem = (await client.report([{"lat": 1}, ping(0, lat=91)])).refused(400, "ERR_MISSING_FIELD")
    assert [one["code"] for one in problem["rejected"]] == ["ERR_MISSING_FIELD", "ERR_INVALID_COORDINATES"]
    assert "2 pings" in problem["detail"]
    assert (await client.report([])).json["stored"] == 0
    assert await stored(direct, client.vendor) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "ERR_INVALID_JSON"),
        (b"{", "ERR_INVALID_JSON"),
        (b"\xff", "ERR_INVALID_JSON"),
        (b"7", "ERR_INVALID_MESSAGE"),
        (b'{"pings":7}', "ERR_INVALID_MESSAGE"),
        (b'{"type":"pings"}', "ERR_MISSING_FIELD"),
        (b'{"type":"status","open":true}', "ERR_INVALID_MESSAGE"),
        (orjson.dumps([{}] * 501), "ERR_INVALID_MESSAGE"),
    ],
)
async def test_bodies_that_are_no_pings(client: Client, body: bytes, code: str) -> None:
    """A client's developer must get the cause, not a stack trace or a silent success."""
    (await client.report(body)).refused(400, code)


async def test_a_body_too_large(client: Client) -> None:
    """A client in a loop must not fill the server's memory; the error must name the limit."""
    body = io.BytesIO(b" " * ((1 << 20) + 1))
    answer = await client.ask("POST", client.path, data=body, headers=client.bearer)
    problem = answer.refused(413, "ERR_INVALID_MESSAGE")
    assert "1048576" in problem["detail"]


async def test_the_owner_only(client: Client, vendors: list[SeededVendor]) -> None:
    """Nobody can report for another user's vendor, or read its history."""
    body = orjson.dumps(ping(now_ms()))
    stranger = {"Authorization": f"Bearer {make_token(SECRET, vendors[1].clerk_id, 600)}"}
    expired = {"Authorization": f"Bearer {make_token(SECRET, vendors[0].clerk_id, -600)}"}
    for method in ("POST", "GET"):
        ask = client.ask(method, client.path, data=body)
        answer = await ask
        answer.refused(401, "ERR_UNAUTHORIZED")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        (await client.ask(method, client.path, data=body, headers=stranger)).refused(403, "ERR_FORBIDDEN")
        (await client.ask(method, client.path, data=body, headers=expired)).refused(401, "ERR_INVALID_TOKEN")
        nowhere = await client.ask(method, "/v1/vendors/nobody/locations", data=body, headers=client.bearer)
        nowhere.refused(404, "ERR_VENDOR_NOT_FOUND")
    assert (await client.ask("POST", f"{client.path}?token={client.token}", data=body)).status == 200


async def test_customers_see_what_came_over_http(client: Client, running: Running) -> None:
    """A vendor that reports over HTTP is on the map like any other: immediately, online, and moving."""
    async with CustomerApp(running.url) as customer:
        await customer.watch("w", circle(LAT, LONG, 1000))
        await client.report([ping(now_ms() - 2000, lat=LAT + 0.001), ping(now_ms() - 1000, heading=90, speed=4.5)])
        await customer.sees("w", {client.vendor.vendor_id: (LAT, LONG)})
        card = customer.views["w"][client.vendor.vendor_id]
        assert (card["name"], card["online"], card["heading"], card["speed"]) == (client.vendor.name, True, 90, 4.5)
        await client.report(ping(now_ms(), lat=LAT + 0.002))
        await customer.sees("w", {client.vendor.vendor_id: (LAT + 0.002, LONG)})


async def test_an_old_ping_is_history_only(client: Client, running: Running, direct: Any) -> None:
    """A backlog from yesterday must not show a truck at its position of yesterday."""
    old = now_ms() - 86_400_000
    assert (await client.report(ping(old))).json["stored"] == 1
    assert [row[0] for row in await stored(direct, client.vendor)] == [old]
    async with CustomerApp(running.url) as customer:
        await customer.watch("w", circle(LAT, LONG, 1000))
        assert customer.views["w"] == {}


async def test_a_vendor_deleted_before_its_pings_are_stored(client: Client, running: Running, direct: Any) -> None:
    """A vendor may be deleted between the check of the token and the commit: the app gets an error."""
    found, deleted = asyncio.Event(), asyncio.Event()
    look_up = running.server.dataloader.vendor

    async def held(vendor_id: str) -> Any:
        row = await look_up(vendor_id)
        found.set()
        await deleted.wait()
        return row

    running.server.dataloader.vendor = held  # type: ignore[method-assign]  # holds the request until the deletion
    reporting = asyncio.create_task(client.report(ping(now_ms())))
    await eventually(found.is_set, "the vendor is found")
    await direct.execute('DELETE FROM "vendors" WHERE "id" = $1', client.vendor.vendor_id)
    deleted.set()
    (await reporting).refused(404, "ERR_VENDOR_NOT_FOUND")
    async with CustomerApp(running.url) as customer:
        await customer.watch("w", circle(LAT, LONG, 1000))
        assert customer.views["w"] == {}


# a slow database


@pytest.fixture
def stuck(running: Running, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Makes the server's commits fail until the event is set."""
    freed = asyncio.Event()
    store = running.server.batcher._store

    async def held(chunks: Any, retry: bool) -> Any:
        if not freed.is_set():
            raise Unavailable("PostgreSQL is held by the test")
        return await store(chunks, retry)

    monkeypatch.setattr(running.server.batcher, "_store", held)
    return freed


async def test_no_answer_before_the_commit(client: Client, running: Running, stuck: asyncio.Event, direct: Any) -> None:
    """While PostgreSQL is down an app must get no success, or it would consider its ping stored."""
    now = now_ms()
    reporting = asyncio.create_task(client.report(ping(now)))
    await eventually(lambda: running.server.batcher.retries > 0, "an attempt to commit")
    assert not reporting.done()
    stuck.set()
    assert (await reporting).json["stored"] == 1
    assert [row[0] for row in await stored(direct, client.vendor)] == [now]


async def test_no_commit_in_time(client: Client, running: Running, stuck: asyncio.Event, direct: Any) -> None:
    """A request must end with a retryable error; accepted pings are still stored once."""
    running.server.reports._settle_wait = 0.2
    now = now_ms()
    answer = await client.report(ping(now))
    problem = answer.refused(503, "ERR_OVERLOADED")
    assert "again" in problem["detail"]
    assert problem["retryAfterMs"] > 0
    assert int(answer.headers["Retry-After"]) >= 1
    stuck.set()
    running.server.reports._settle_wait = 10.0
    assert (await client.report(ping(now))).json["stored"] == 1
    assert len(await stored(direct, client.vendor)) == 1


async def test_no_room(
    client: Client, running: Running, stuck: asyncio.Event, direct: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full buffer refuses requests after a short wait, and the number of waiting requests is limited."""
    monkeypatch.setattr(http_ingest, "ROOM_WAIT", 0.3)
    monkeypatch.setattr(http_ingest, "MAX_WAITING", 1)
    running.server.batcher._max_pings = 1
    now = now_ms()
    first = asyncio.create_task(client.report(ping(now - 2)))
    await eventually(lambda: running.server.batcher.pings == 1, "the buffer full")
    second = asyncio.create_task(client.report(ping(now - 1)))
    await eventually(lambda: running.server.batcher.full, "a request waiting for room")
    (await client.report(ping(now))).refused(503, "ERR_OVERLOADED")
    assert not second.done(), "the third waited, though one is all that may"
    assert "room" in (await second).refused(503, "ERR_OVERLOADED")["detail"]
    stuck.set()
    assert (await first).status == 200
    assert [row[0] for row in await stored(direct, client.vendor)] == [now - 2]


# OwnTracks


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


async def test_owntracks(client: Client, direct: Any) -> None:
    """The app's documented messages, Basic auth and headers; it expects an array."""
    headers = {**basic("jane", client.token), "X-Limit-U": "jane", "X-Limit-D": "phone", "Content-Type": JSON}
    for message in (OWNTRACKS_BOOKLET, OWNTRACKS_IOS, b'{"_type":"lwt","tst":1497476456}', b""):
        answer = await client.ask("POST", "/v1/owntracks", data=message, headers=headers)
        assert (answer.status, answer.type, answer.body) == (200, JSON, b"[]"), answer.body
    assert await stored(direct, client.vendor) == [
        (1497349316000, 48.85833, 2.29513),
        (1497476456000, 48.85833, 2.29513),
    ]


async def test_owntracks_refusals(client: Client, running: Running, direct: Any, vendors: list[SeededVendor]) -> None:
    """A wrong token or vendor is refused. An invalid ping is not, or the app would resend it forever."""

    async def post(message: bytes, headers: dict[str, str]) -> Answer:
        return await client.ask("POST", "/v1/owntracks", data=message, headers=headers)

    (await post(OWNTRACKS_BOOKLET, {})).refused(401, "ERR_UNAUTHORIZED")
    (await post(OWNTRACKS_BOOKLET, basic("jane", "wrong"))).refused(401, "ERR_INVALID_TOKEN")
    far = orjson.dumps({"_type": "location", "lat": 1.0, "lon": 2.0, "tst": int(time.time()) + 3600})
    for never in (b'{"_type":"encrypted","data":"6fW+"}', b"{", b'{"_type":"location"}', far):
        answer = await post(never, basic("jane", client.token))
        assert (answer.status, answer.body) == (200, b"[]")
    assert running.server.counters.rejected["ERR_TIMESTAMP_IN_FUTURE"] == 1
    assert await stored(direct, client.vendor) == []
    other = f"/v1/owntracks?vendorId={vendors[1].vendor_id}"
    answer = await client.ask("POST", other, data=OWNTRACKS_BOOKLET, headers=basic("jane", client.token))
    answer.refused(403, "ERR_FORBIDDEN")


async def test_an_app_that_names_another_users_vendor(client: Client, direct: Any, vendors: list[SeededVendor]) -> None:
    """A device configured for another user's truck is refused, not stored as the user's own truck."""
    another = vendors[1].vendor_id
    answer = await client.ask("POST", "/v1/owntracks", data=OWNTRACKS_BOOKLET, headers=basic(another, client.token))
    answer.refused(403, "ERR_FORBIDDEN")
    (await client.ask("GET", f"/v1/osmand?token={client.token}&lat=1&lon=2&id={another}")).refused(403, "ERR_FORBIDDEN")
    assert await stored(direct, client.vendor) == []


async def test_a_long_offline_batch(client: Client, direct: Any) -> None:
    """A day's backlog comes in one request; if all of it were refused, it would block later pings."""
    start = now_ms() - 2_000_000
    one = {"coords": {"latitude": LAT, "longitude": LONG}}
    batch: list[Any] = [{**one, "timestamp": start + number * 1000} for number in range(1200)]
    batch[700] = {}
    path = f"/v1/osmand?token={client.token}"
    answer = await client.ask("POST", path, data=orjson.dumps({"location": batch}), headers={"Content-Type": JSON})
    assert (answer.status, answer.body) == (200, b"")
    assert [row[0] for row in await stored(direct, client.vendor)] == [
        start + number * 1000 for number in range(1200) if number != 700
    ]
    feature = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [LONG, LAT]}, "properties": {}}
    answer = await client.ask("POST", path, data=orjson.dumps({"locations": [feature]}))
    assert answer.json == {"result": "ok"}, "Overland keeps what is answered otherwise"


async def test_an_app_names_one_of_several_vendors(client: Client, direct: Any) -> None:
    """A user with two trucks selects the phone's truck in the app's settings."""
    row = await direct.fetchrow('SELECT "userId" FROM "vendors" WHERE "id" = $1', client.vendor.vendor_id)
    second = SeededVendor("second", client.vendor.clerk_id, "Second")
    await direct.execute(
        """INSERT INTO "vendors" ("id", "name", "userId", "updatedAt") VALUES ('second', 'Second', $1, now())""", row[0]
    )
    ask = client.ask
    message = OWNTRACKS_BOOKLET
    (await ask("POST", "/v1/owntracks", data=message, headers=basic("jane", client.token))).refused(
        400, "ERR_MISSING_FIELD"
    )
    assert (await ask("POST", "/v1/owntracks", data=message, headers=basic("second", client.token))).status == 200
    osmand = {"token": client.token, "lat": "60.0", "lon": "30.0", "timestamp": "1377177267"}
    assert (await ask("GET", "/v1/osmand", params={**osmand, "id": "second"})).status == 200
    assert (
        await ask("GET", "/v1/osmand", params={**osmand, "vendorId": "second", "timestamp": "1700000005"})
    ).status == 200
    (await ask("GET", "/v1/osmand", params={**osmand, "id": "48241179"})).refused(400, "ERR_MISSING_FIELD")
    assert [row[0] for row in await stored(direct, second)] == [1377177267000, 1497476456000, 1700000005000]
    assert await stored(direct, client.vendor) == []


# the OsmAnd protocol


async def test_osmand_query(client: Client, direct: Any) -> None:
    """Traccar Client before 9.0, OsmAnd and GPSLogger with their URL templates; they read only the status."""
    requests = [
        # Traccar Client: POST, all parameters in the query, a numeric identifier
        (
            "POST",
            "id=123456&timestamp=1377177267&lat=60.0&lon=30.0&speed=0.0&bearing=0.0&altitude=0&accuracy=5.0&batt=87",
        ),
        # OsmAnd: GET, milliseconds
        ("GET", "lat=42.06288&lon=-88.23412&timestamp=1442068686579&hdop=6.0&altitude=224.0&speed=1.5&speedUnit=mps"),
        # GPSLogger: %TIME
        ("GET", "lat=42.06288&lon=-88.23412&timestamp=2016-01-27T18%3A55%3A47Z&speed=1.5&speedUnit=mps&acc=8"),
    ]
    for method, query in requests:
        answer = await client.ask(method, f"/v1/osmand?token={client.token}&{query}")
        assert (answer.status, answer.body) == (200, b""), answer.body
    assert await stored(direct, client.vendor) == [
        (1377177267000, 60.0, 30.0),
        (1442068686579, 42.06288, -88.23412),
        (1453920947000, 42.06288, -88.23412),
    ]


async def test_osmand_form_and_auth(client: Client, direct: Any) -> None:
    """A form in the body, and the three ways to send a token."""
    form = {"lat": "60.0", "lon": "30.0"}
    ways: list[dict[str, Any]] = [
        {"data": {**form, "timestamp": "1700000001", "id": client.token}},
        {"data": {**form, "timestamp": "1700000002", "deviceid": client.token}},
        {"data": {**form, "timestamp": "1700000003", "id": "7"}, "headers": basic("jane", client.token)},
        {"data": {**form, "timestamp": "1700000004"}, "headers": client.bearer},
        {"data": {**form, "timestamp": "1700000005"}, "params": {"token": client.token}},
    ]
    for way in ways:
        answer = await client.ask("POST", "/v1/osmand", **way)
        assert answer.status == 200, answer.body
    assert [row[0] for row in await stored(direct, client.vendor)] == [
        1_700_000_000_000 + 1000 * n for n in (1, 2, 3, 4, 5)
    ]


async def test_osmand_json(client: Client, direct: Any) -> None:
    """Traccar Client from 9.0: with the token in its URL, or as its device identifier."""
    headers = {"Content-Type": JSON}
    path = f"/v1/osmand?token={client.token}"
    answer = await client.ask("POST", path, data=TRACCAR_CLIENT_9, headers=headers)
    assert (answer.status, answer.body) == (200, b"")
    body = orjson.loads(TRACCAR_CLIENT_9) | {"device_id": client.token}
    body["location"]["timestamp"] = "2025-06-15T13:45:13.862Z"
    assert (await client.ask("POST", "/v1/osmand", data=orjson.dumps(body), headers=headers)).status == 200
    assert await stored(direct, client.vendor) == [
        (1749995112862, 37.4219983, -122.084),
        (1749995113862, 37.4219983, -122.084),
    ]


async def test_osmand_without_a_position(client: Client, direct: Any) -> None:
    """An app that gets an error would resend the same ping forever, ahead of all later ones."""
    path = f"/v1/osmand?token={client.token}"
    ahead = f"lat=1&lon=2&timestamp={now_ms() + 120_000}"
    for query in ("id=1&lat=0&lon=0&valid=false", "id=1&lat=0&lon=0", "id=1", ahead, "lat=1&lon=2&timestamp=x"):
        assert (await client.ask("GET", f"{path}&{query}")).status == 200, query
    assert (await client.ask("POST", path, data=b"\xff\xfe")).status == 200
    (await client.ask("GET", "/v1/osmand?id=1&lat=1&lon=2")).refused(401, "ERR_UNAUTHORIZED")
    assert (await client.ask("HEAD", f"{path}&lat=1&lon=2")).status == 405
    assert await stored(direct, client.vendor) == []


# GET /v1/vendors/{id}/locations


async def test_history_is_what_was_stored(client: Client) -> None:
    """An owner reads all pings, from a socket or over HTTP, in order; proxies must not cache them."""
    now = now_ms()
    async with VendorApp(client.url, client.vendor.clerk_id) as vendor:
        await vendor.ping(LAT, LONG, timestamp=now - 1000, seq=1)
        await vendor.acked(1)
    await client.report([ping(now, lat=1), ping(now - 2000, lat=2), ping(now - 2 * 86_400_000, lat=3)])
    answer = await client.past()
    assert (answer.status, answer.type) == (200, JSON)
    assert (answer.headers["Cache-Control"], answer.headers["Vary"]) == ("no-store", "Accept")
    assert answer.json["next"] is None
    assert "Link" not in answer.headers
    assert [(one["lat"], one["timestamp"]) for one in answer.json["locations"]] == [
        (2, now - 2000),
        (LAT, now - 1000),
        (1, now),
    ]
    longer = await client.past(**{"from": str(now - 3 * 86_400_000), "to": str(now)})
    assert [one["lat"] for one in longer.json["locations"]] == [3, 2, LAT]


@pytest.mark.parametrize("accept", [JSON, "application/geo+json", "application/gpx+xml"])
async def test_pages(client: Client, accept: str) -> None:
    """Pages by the Link header, in all formats: together they contain every row once, while more are being stored."""
    start = now_ms() - 100_000
    await client.report([ping(start + n, lat=n / 100) for n in range(25)])
    seen: list[float] = []
    answer = await client.past(accept, limit=10)
    for _ in range(3):
        assert answer.type == accept
        if accept == JSON:
            seen += [one["lat"] for one in answer.json["locations"]]
        elif accept == "application/geo+json":
            seen += [one["geometry"]["coordinates"][1] for one in answer.json["features"]]
        else:
            points = ET.fromstring(answer.body).iter("{http://www.topografix.com/GPX/1/1}trkpt")
            seen += [float(point.get("lat", "")) for point in points]
        await client.report(ping(start - 5, lat=90))
        if not answer.links:
            break
        url = str(answer.links["next"]["url"]).removeprefix(client.url)
        assert client.token not in url
        answer = await client.ask("GET", url, headers={**client.bearer, "Accept": accept})
    assert seen == [n / 100 for n in range(25)]
    assert not answer.links


async def test_the_cursor_in_the_body(client: Client) -> None:
    """A client that reads `next` instead of the header gets the same pages."""
    start = now_ms() - 100_000
    await client.report([ping(start + n) for n in range(5)])
    first = await client.past(limit=3)
    second = await client.past(limit=3, cursor=first.json["next"])
    times = [one["timestamp"] for page in (first, second) for one in page.json["locations"]]
    assert times == [start + n for n in range(5)]
    assert second.json["next"] is None
    third = await client.past(limit=3, cursor=first.json["next"][:-2])
    third.refused(400, "ERR_INVALID_MESSAGE")


async def test_history_refusals(client: Client) -> None:
    """An invalid query must get an error with the cause."""
    (await client.past("text/csv")).refused(406, "ERR_INVALID_MESSAGE")
    (await client.past(limit=0)).refused(400, "ERR_INVALID_MESSAGE")
    (await client.past(**{"from": "yesterday"})).refused(400, "ERR_INVALID_TIMESTAMP")
    (await client.ask("DELETE", client.path)).refused(405, "ERR_INVALID_MESSAGE")
    (await client.ask("GET", "/v1/nothing")).refused(404, "ERR_NOT_FOUND")


async def test_public_history(serve: Serve, vendors: list[SeededVendor]) -> None:
    """With the setting, everyone who may watch can read history; only the owner can report."""
    running = await serve(history_access="public")
    async with client_of(running, vendors[0]) as client:
        await client.report(ping(now_ms()))
        assert len((await client.ask("GET", client.path)).json["locations"]) == 1
        (await client.ask("GET", "/v1/vendors/nobody/locations")).refused(404, "ERR_VENDOR_NOT_FOUND")
        (await client.ask("POST", client.path, data=b"[]")).refused(401, "ERR_UNAUTHORIZED")


async def test_history_reads_the_days_it_needs(client: Client, direct: Any) -> None:
    """With months of partitions, a query of one hour must not open them all."""
    today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    noon = round(today.timestamp() * 1000)
    await direct.execute("SET plan_cache_mode = force_custom_plan")
    arguments = (
        client.vendor.vendor_id,
        noon,
        noon + 3_600_000,
        noon - 1,
        "",
        id_floor(noon - ID_SLACK_MS),
        id_floor(noon + 3_600_000 + ID_SLACK_MS),
        1000,
    )
    for mode in ("force_custom_plan", "force_generic_plan"):
        await direct.execute(f"SET plan_cache_mode = {mode}")
        plan = await direct.fetch("EXPLAIN (ANALYZE, COSTS off) " + LOCATIONS, *arguments)
        text = "\n".join(row[0] for row in plan)
        days = [(today + timedelta(days=n)).strftime("locations_%Y%m%d") for n in range(-2, 6)]
        assert [day for day in days if day in text] == [days[2]], text


async def test_nearby_with_invalid_numbers(client: Client) -> None:
    """Each of these once caused a 500 and a traceback: NaN and infinity are numbers in Python."""
    for limit in ("nan", "inf", "-inf", "1e400", "9" * 400, "0", "-1", "1001", "one", ""):
        answer = await client.ask("GET", "/v1/vendors/nearby", params={"lat": "1", "long": "2", "limit": limit})
        answer.refused(400, "ERR_INVALID_MESSAGE")
    for wrong in ({"lat": "nan"}, {"long": "inf"}, {"lat": "1e400"}, {"lat": "91"}):
        answer = await client.ask("GET", "/v1/vendors/nearby", params={"lat": "1", "long": "2", **wrong})
        answer.refused(400, "ERR_INVALID_COORDINATES")
    for radius in ("nan", "inf", "-1"):
        answer = await client.ask("GET", "/v1/vendors/nearby", params={"lat": "1", "long": "2", "radius": radius})
        assert answer.status == 400
    answer = await client.ask("GET", "/v1/vendors/nearby", params={"lat": "1", "long": "2", "limit": "1e3"})
    assert answer.json == {"vendors": []}
