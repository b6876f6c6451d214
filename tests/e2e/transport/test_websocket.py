"""WebSocket connections: authentication, and the close codes, on which apps base their reaction."""

from __future__ import annotations

import asyncio
import time
from base64 import urlsafe_b64encode
from typing import Any

import aiohttp
import orjson
import pytest

from streamer.accounts.tokens import make_token
from streamer.ingest import rate_limit
from streamer.ingest.cost import BURST
from streamer.live.fix import Fix
from streamer.live.vendor import Card
from streamer.protocol import messages
from streamer.storage.seed import SeededVendor
from streamer.transport import websocket
from tests.conftest import Running, Serve
from tests.support.apps import SECRET, App, circle, now_ms
from tests.support.issuer import EC, Issuer, signed

LAT, LONG = 52.2297, 21.0122
WATCH = {"type": "watch", "id": "w", "area": circle(LAT, LONG, 1000)}
WAYS = ("header", "query", "subprotocol", "message")
PATHS = ("/v1/vendor", "/v1/watch")


def app(url: str, path: str, token: str | None = None, way: str = "header", **params: str) -> App:
    """An app that sends its token in one of the supported ways; for `message` the caller sends `auth`."""
    made = App(url, path, None, **params, **({"token": token} if token and way == "query" else {}))
    if token and way == "header":
        made.headers = {"Authorization": f"Bearer {token}"}
    if token and way == "subprotocol":
        made.protocols = (f"bearer.{token}", "streamer.v1")
    return made


def token_of(vendor: SeededVendor, ttl: float = 600) -> str:
    return make_token(SECRET, vendor.clerk_id, ttl)


async def let_in(phone: App, path: str) -> None:
    """Checks that the app is served: a vendor gets `hello`, a customer gets a snapshot."""
    if path == "/v1/vendor":
        await phone.expect("hello")
    else:
        await phone.send(WATCH)
        await phone.expect("snapshot")


async def turned_away(phone: App, close: int, code: str) -> str:
    """Expects an `error`, then this close code; returns the message."""
    error = await phone.expect("error")
    assert error["code"] == code, error
    assert await phone.closed() == close
    return str(error["message"])


# authentication


async def test_every_way_to_send_a_token(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A phone, a browser and a simple sensor can each send a token; bad ones are refused in each way."""
    server = await serve(watch_auth="required")

    async def for_one(path: str) -> None:
        good = token_of(vendors[0])
        for way in WAYS:
            for token in (good, token_of(vendors[0], -60), "no.such.token"):
                async with app(server.url, path, token, way) as phone:
                    assert phone.socket.protocol == ("streamer.v1" if way == "subprotocol" else None), (
                        "no token in answers"
                    )
                    if way == "message":
                        await phone.send({"type": "auth", "token": token})
                    if token == good:
                        await let_in(phone, path)
                    else:
                        why = await turned_away(phone, 4401, "ERR_INVALID_TOKEN")
                        assert ("expired" in why) == (token != "no.such.token")

    await asyncio.gather(*map(for_one, PATHS))


async def test_a_refusal_that_quotes_half_a_character_is_sent(serve: Serve) -> None:
    """An error may quote a token; if it could not be encoded, the client would stay, and watch, unrefused."""
    server = await serve(watch_auth="required")
    header = urlsafe_b64encode(rb'{"alg":"HS256","crit":["\ud800"]}').decode().rstrip("=")
    token = f"{header}.e30.e30"
    for path in PATHS:
        for way in WAYS:
            async with app(server.url, path, token, way) as phone:
                if way == "message":
                    await phone.send({"type": "auth", "token": token})
                await phone.send(WATCH)
                await turned_away(phone, 4401, "ERR_INVALID_TOKEN")


async def test_a_refusal_that_cannot_be_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was refused must not stay open because of an error while the client is told."""
    server = await serve(watch_auth="required")

    def broken(*_: object) -> bytes:
        raise ValueError("can't be encoded")

    monkeypatch.setattr(messages, "encode_error", broken)
    for path in PATHS:
        async with app(server.url, path, "no token") as phone:
            assert await phone.closed() == 1006


async def test_an_issuers_token_opens_a_socket(serve: Serve, vendors: list[SeededVendor]) -> None:
    """Clerk's unchanged session tokens, through the whole server: by its JWKS, with issuer and party checked."""
    rules = {"jwt_issuer": "https://clerk.venta.example", "jwt_parties": "https://app.venta.example, https://x.example"}
    async with Issuer(EC["e1"]) as issuer:
        server = await serve(jwks_url=issuer.url, jwt_secret=None, **rules)
        claims = {"sub": vendors[0].clerk_id}
        async with app(server.url, "/v1/vendor", signed(EC["e1"], claims)) as phone:
            await phone.expect("hello")
        async with app(server.url, "/v1/vendor", signed(EC["e1"], {**claims, "azp": "https://evil.example"})) as phone:
            assert "azp" in await turned_away(phone, 4401, "ERR_INVALID_TOKEN")
        async with app(server.url, "/v1/vendor", token_of(vendors[0])) as phone:
            assert "HS256" in await turned_away(phone, 4401, "ERR_INVALID_TOKEN")
        assert not server.server.health.unready()


async def test_an_issuer_that_is_away_is_no_fault_of_the_app(serve: Serve, vendors: list[SeededVendor]) -> None:
    """While the keys can't be fetched an app is asked to reconnect; its token is not refused as invalid."""
    issuer = Issuer(EC["e1"])
    server = await serve(jwks_url=issuer.url)
    async with app(server.url, "/v1/vendor", signed(EC["e1"], {"sub": vendors[0].clerk_id})) as phone:
        assert "try again" in await turned_away(phone, 1011, "ERR_OVERLOADED")
    async with app(server.url, "/v1/vendor", token_of(vendors[0])) as phone:
        await phone.expect("hello")


async def test_without_a_token(serve: Serve) -> None:
    """A client without a token in time, or with another first message, is closed: strangers hold no connections."""
    server = await serve(watch_auth="required", auth_timeout=0.2)

    async def for_one(path: str) -> None:
        async with app(server.url, path) as phone:
            await turned_away(phone, 4401, "ERR_UNAUTHORIZED")
        for first in (
            {"type": "ping", "lat": LAT, "long": LONG},
            WATCH,
            {"type": "auth"},
            {"type": "auth", "token": 7},
        ):
            async with app(server.url, path) as phone:
                await phone.send(first)
                await phone.expect("error")
                assert await phone.closed() == 4401
        async with app(server.url, path) as phone:
            await phone.socket.send_bytes(b"\xff{")
            await turned_away(phone, 4401, "ERR_INVALID_JSON")

    await asyncio.gather(*map(for_one, PATHS))


async def test_a_token_that_waits_for_its_turn_is_in_time(serve: Serve, vendors: list[SeededVendor]) -> None:
    """While others at its address use up their budget of CPU time, an app was told that it had sent no token."""
    server = await serve(watch_auth="required", auth_timeout=0.3, trusted_hops=1)
    limits = server.server.admission._costs
    now = asyncio.get_running_loop().time()
    limits.addresses.of("203.0.113.9", now).add((BURST + 1) * limits.limits.address, now)
    async with app(server.url, "/v1/watch") as stranger:
        await turned_away(stranger, 4401, "ERR_UNAUTHORIZED")
    phone = app(server.url, "/v1/watch")
    phone.headers = {"X-Forwarded-For": "203.0.113.9"}
    async with phone:
        await phone.send({"type": "auth", "token": token_of(vendors[0])})
        assert (await phone.expect("error"))["code"] == "ERR_RATE_LIMITED"
        await phone.send(WATCH)
        await phone.expect("snapshot", 5)


async def test_watching_without_a_token(serve: Serve, vendors: list[SeededVendor]) -> None:
    """With this setting everyone may watch; a token that is sent anyway must be valid."""
    server = await serve(watch_auth="optional")
    async with app(server.url, "/v1/watch") as phone:
        await let_in(phone, "/v1/watch")
    async with app(server.url, "/v1/watch", token_of(vendors[0], -60)) as phone:
        await turned_away(phone, 4401, "ERR_INVALID_TOKEN")


async def test_the_owner_only(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A user can't report, open or close for another's vendor; the close code forbids a reconnect."""
    one, other, *_ = vendors
    server = await serve()
    async with app(server.url, "/v1/vendor", token_of(one), vendorId=other.vendor_id) as phone:
        assert repr(other.vendor_id) in await turned_away(phone, 4403, "ERR_FORBIDDEN")
    async with app(server.url, "/v1/vendor", token_of(one), vendorId="nobody") as phone:
        await turned_away(phone, 4404, "ERR_VENDOR_NOT_FOUND")
    async with app(server.url, "/v1/vendor", make_token(SECRET, "user_without_vendor", 60)) as phone:
        await turned_away(phone, 4404, "ERR_VENDOR_NOT_FOUND")
    async with app(server.url, "/v1/vendor", token_of(one), vendorId=one.vendor_id) as phone:
        assert (await phone.expect("hello"))["vendorId"] == one.vendor_id


# expiry of tokens


async def test_expiry_closes_a_live_socket(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A stolen phone's socket ends with its token, with the close code for a new token."""
    server = await serve(watch_auth="required")

    async def for_one(path: str) -> None:
        expires = int(time.time()) + 2
        async with app(server.url, path, make_token(SECRET, vendors[0].clerk_id, 2, now=expires - 2)) as phone:
            await let_in(phone, path)
            assert await phone.closed() == 4401
            assert time.time() >= expires

    await asyncio.gather(*map(for_one, PATHS))


async def test_a_new_token_extends(serve: Serve, vendors: list[SeededVendor]) -> None:
    """An app with tokens of one minute stays connected for hours; a new token with a shorter lifetime applies, too."""
    server = await serve(watch_auth="required")

    async def for_one(path: str) -> None:
        expires = int(time.time()) + 1
        async with app(server.url, path, make_token(SECRET, vendors[0].clerk_id, 1, now=expires - 1)) as phone:
            await phone.send({"type": "auth", "token": token_of(vendors[0])})
            await let_in(phone, path)
            await asyncio.sleep(max(0.0, expires - time.time()) + 0.3)
            await phone.send({"type": "auth", "token": ""})
            assert (await phone.expect("error"))["code"] == "ERR_INVALID_MESSAGE", (
                "it is open yet, and says what is wrong"
            )
            await phone.send({"type": "auth", "token": make_token(SECRET, vendors[0].clerk_id, 1)})
            assert await phone.closed() == 4401

    await asyncio.gather(*map(for_one, PATHS))


async def test_a_bad_new_token_ends_it(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A bad token on an authenticated connection closes it."""
    server = await serve(watch_auth="required")

    async def for_one(path: str) -> None:
        async with app(server.url, path, token_of(vendors[0])) as phone:
            await let_in(phone, path)
            await phone.send({"type": "auth", "token": token_of(vendors[0], -60)})
            await turned_away(phone, 4401, "ERR_INVALID_TOKEN")

    await asyncio.gather(*map(for_one, PATHS))


async def test_a_new_token_of_another_user(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A vendor's socket accepts only new tokens of the vendor's owner."""
    server = await serve()
    async with app(server.url, "/v1/vendor", token_of(vendors[0])) as phone:
        await phone.expect("hello")
        await phone.send({"type": "auth", "token": token_of(vendors[1])})
        await turned_away(phone, 4403, "ERR_FORBIDDEN")


# closes by the server


@pytest.fixture
async def running(serve: Serve, vendors: list[SeededVendor]) -> Running:
    """A server with short timeouts and low limits."""
    return await serve(max_message=2048, max_bad_messages=3, heartbeat=0.1, silence=2.0, vendor_messages=50)


async def test_a_customer_who_zooms_out_stays(running: Running) -> None:
    """An area that is too large is refused, however often in a row; closed with 4400 the map would be dead for good."""
    async with app(running.url, "/v1/watch") as customer:
        for number in range(10):
            await customer.send({"type": "watch", "id": f"{number}", "area": circle(52.0, 21.0, 1e6)})
            assert (await customer.expect("error", id=f"{number}"))["code"] == "ERR_AREA_TOO_LARGE"
        await customer.send(WATCH)
        await customer.expect("snapshot")


async def test_a_message_too_large(running: Running, vendors: list[SeededVendor]) -> None:
    """1009: an app that sends too large a message must not resend it."""

    async def for_one(path: str) -> None:
        async with app(running.url, path, token_of(vendors[0])) as phone:
            await let_in(phone, path)
            await phone.send({"type": "auth", "token": "x" * 3000})
            assert await phone.closed() == 1009

    await asyncio.gather(*map(for_one, PATHS))


async def test_another_protocol(running: Running, vendors: list[SeededVendor]) -> None:
    """4400: a client that does not speak this protocol is closed; a valid message resets the count."""

    async def for_one(path: str) -> None:
        async with app(running.url, path, token_of(vendors[0])) as phone:
            await let_in(phone, path)
            good: dict[str, Any] = WATCH if path == "/v1/watch" else {"lat": LAT, "long": LONG}
            messages: list[Any] = [[], "hello", good, {"type": "hello"}, 7, good, {"type": "?"}, [], "x"]
            for message in messages:
                await phone.send(message)
            assert await phone.closed() == 4400
            errors = [m for m in phone.messages if m["type"] == "error"]
            assert len(errors) == 7, "each was answered, and the end explained"
            assert "3 bad messages" in errors[-1]["message"]

    await asyncio.gather(*map(for_one, PATHS))


async def test_a_dead_connection(running: Running, vendors: list[SeededVendor]) -> None:
    """4408: a phone that disappeared is closed; one that only answers pings is not."""

    async def for_one(path: str) -> None:
        silent, alive = app(running.url, path, token_of(vendors[0])), app(running.url, path, token_of(vendors[0]))
        silent.answers_pings = False
        async with silent, alive:
            await let_in(silent, path)
            await let_in(alive, path)
            assert await silent.closed() == 4408
            assert alive.close_code is None

    await asyncio.gather(*map(for_one, PATHS))


async def test_too_many_messages(
    running: Running, vendors: list[SeededVendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """4429: a vendor app in a loop is warned, then closed, and all its acked pings are stored."""
    for module in (rate_limit, websocket):
        monkeypatch.setattr(module, "PAUSE", 0.01)
    async with app(running.url, "/v1/vendor", token_of(vendors[0])) as phone:
        await phone.expect("hello")
        for _ in range(100):
            await phone.send({"lat": LAT, "long": LONG})
        assert await phone.closed() == 4429
        errors = [m for m in phone.messages if m["type"] == "error"]
        assert {m["code"] for m in errors} == {"ERR_RATE_LIMITED"}
        assert errors[0]["retryAfterMs"] == 10


async def test_too_many_tokens(running: Running, vendors: list[SeededVendor]) -> None:
    """4429: checking signatures is expensive, so an app that sends its token in a loop is closed."""

    async def for_one(path: str) -> None:
        async with app(running.url, path, token_of(vendors[0])) as phone:
            await let_in(phone, path)
            for _ in range(40):
                await phone.send({"type": "auth", "token": token_of(vendors[0])})
            assert "tokens" in await turned_away(phone, 4429, "ERR_RATE_LIMITED")

    await asyncio.gather(*map(for_one, PATHS))


async def test_binary_is_text(running: Running, vendors: list[SeededVendor]) -> None:
    """An app may send its JSON as binary frames."""
    async with app(running.url, "/v1/vendor", token_of(vendors[0])) as phone:
        await phone.expect("hello")
        await phone.send(b'{"lat":52.2,"long":21,"seq":5}')
        assert (await phone.expect("ack"))["seq"] == 5


# compression


async def test_compressed_frames(serve: Serve, vendors: list[SeededVendor]) -> None:
    """A browser that offers compression gets the same messages in fewer bytes, and may compress its own."""
    server = await serve(watch_auth="optional")
    local_vendors = server.server.broker.local_vendors
    for number in range(30):
        local_vendors.connect(f"v{number}", Card(now_ms(), f"Vendor {number}", True, None), now_ms())
        local_vendors.fix(f"v{number}", Fix(now_ms(), LAT, LONG + number * 1e-5), now_ms())
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/v1/watch", compress=15) as socket:
        assert socket.compress
        for _ in range(2):  # no message depends on an earlier one
            await socket.send_str(orjson.dumps(WATCH).decode())
            snapshot = orjson.loads((await socket.receive(10)).data)
            assert {card["vendorId"] for card in snapshot["vendors"]} == {f"v{number}" for number in range(30)}
        for number in range(30):
            local_vendors.fix(f"v{number}", Fix(now_ms(), LAT + 1e-4, LONG + number * 1e-5), now_ms())
        moved: set[str] = set()
        while len(moved) < 30:
            update = orjson.loads((await socket.receive(10)).data)
            moved |= {fix["vendorId"] for fix in update["moved"] if fix["lat"] == LAT + 1e-4}
        sent = server.server.index.sent
        assert sent < 30 * 3 * 70, f"{sent} bytes for 60 cards and 30 fixes or more"
