"""Both clients against the real server: their guarantees with closed, dead and killed connections.

Each runs as the program that `streamer conformance` tests, so one test covers all languages.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import pytest

from streamer.accounts.tokens import make_token
from streamer.dev.conformance.program import Program
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually, now_ms
from tests.support.clients import PROGRAMS, stored
from tests.support.process import ServerProcess
from tests.support.proxy import Proxy

DOWN = {"connectTimeout": 2000}
"""For tests that interrupt the network: Node 20 does not report a connection that is reset before its handshake."""
LAT, LONG = 52.2297, 21.0122


class App(Program):
    """An app with one of the clients, in its own process."""

    def __init__(self, command: list[str], kind: str, url: str, clerk_id: str | None = None, **settings: Any) -> None:
        token = {"token": make_token(SECRET, clerk_id, 600)} if clerk_id else {}
        super().__init__(command, kind, url, {"minDelay": 50, "maxDelay": 300, **token, **settings})

    async def kill(self) -> None:
        """Ends the app; checks that its events never contradicted its view."""
        await super().kill()
        assert not self.named("wrong")

    def named(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Returns the events of one kind."""
        return [e for e in self.events if e["event"] == event and all(e.get(k) == v for k, v in fields.items())]

    async def happens(self, event: str, times: int = 1, within: float = 20, **fields: Any) -> dict[str, Any]:
        """Waits until an event has happened this many times."""
        await eventually(
            lambda: len(self.named(event, **fields)) >= times,
            f"{event} {fields}, only {self.events[-8:]} {self.errors!r}",
            within,
        )
        return self.named(event, **fields)[-1]

    async def do(self, name: str, **fields: Any) -> dict[str, Any]:
        """Sends a command and waits until it is done."""
        return await self.happens("done", number=self.begin(name, **fields))

    def begin(self, name: str, **fields: Any) -> int:
        """Sends a command; returns the number with which the app reports its end."""
        return self.tell({"do": name, **fields})

    async def sees(self, id: str, expected: dict[str, tuple[float, float]]) -> None:
        """Waits until its view has exactly these vendors at these positions, and is fresh."""

        async def holds() -> bool:
            view = await self.do("view", id=id)
            return view["fresh"] and {c["vendorId"]: (c["lat"], c["long"]) for c in view["vendors"]} == expected

        await eventually(holds, f"{id} showing {expected}", within=30)


class Start(Protocol):
    """Starts an app with the client under test."""

    def __call__(self, kind: str, url: str, clerk_id: str | None = None, **settings: Any) -> App: ...


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Start:
    """An app with each of the clients in turn."""
    command = PROGRAMS[request.param]
    if command is None:
        pytest.skip("needs Node 20 or newer")
    return lambda *args, **settings: App(command, *args, **settings)


def pings(first: int, number: int, *, at: int) -> list[dict[str, Any]]:
    """Returns positions a second apart."""
    return [{"lat": LAT + n / 1e5, "long": LONG, "timestamp": at + n * 1000} for n in range(first, first + number)]


async def test_no_ping_is_lost_whatever_is_cut_or_killed(
    program: Start, database_url: str, serving_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The queue's guarantee: network interrupted, server killed, phone killed, and each ping is stored once."""
    (one,) = await seed.seed(database_url, 1)
    file = str(tmp_path / "queue")
    at = now_ms() - 3_600_000
    sent = pings(0, 2000, at=at)
    async with ServerProcess(serving_url, redis_url) as server, Proxy(server.url) as proxy:
        async with program("vendor", proxy.url, one.clerk_id, file=file) as app:
            await app.happens("state", state="connected")
            await app.do("ping", fixes=sent[:100])
            proxy.cut()
            await app.do("ping", fixes=sent[100:700])
            await app.happens("state", state="connected", times=2)
            begun = app.begin("ping", fixes=sent[700:1000])
            await server.end(signal.SIGKILL)
            await app.do("ping", fixes=sent[1000:1500])
            await app.happens("done", number=begun)
            await app.kill()
        await server.start()
        async with program("vendor", proxy.url, one.clerk_id, file=file) as app:
            await app.do("ping", fixes=sent[1500:])
            await app.do("flushed")
            assert (await app.do("size"))["size"] == 0
        assert await stored(database_url, one.vendor_id) == [ping["timestamp"] for ping in sent]
        # Acked pings are removed from the file, too: the next run resends nothing.
        async with program("vendor", proxy.url, one.clerk_id, file=file) as app:
            await app.happens("state", state="connected")
            assert (await app.do("size"))["size"] == 0


async def test_the_newest_position_goes_first_after_a_time_offline(
    program: Start, serve: Serve, database_url: str
) -> None:
    """Customers see the vendor's current position before hours of its backlog have been uploaded."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    now = now_ms()
    async with CustomerApp(server.url) as customer, Proxy(server.url) as proxy:
        await customer.watch("w", circle(LAT, LONG, 5000))
        proxy.down()
        async with program("vendor", proxy.url, one.clerk_id, **DOWN) as app:
            await app.do("ping", fixes=pings(0, 3000, at=now - 3_000_000))
            proxy.up()
            await app.do("flushed")
        await customer.sees("w", {one.vendor_id: (LAT + 2999 / 1e5, LONG)})
        first = next(m for m in customer.messages if m["type"] == "update")["entered"][0]
        assert first["timestamp"] == now - 1000
    assert len(await stored(database_url, one.vendor_id)) == 3000


async def test_a_wrong_clock_is_corrected_before_anything_is_sent(
    program: Start, serve: Serve, database_url: str
) -> None:
    """Otherwise a phone five hours ahead would have all pings rejected; one five hours behind would never be live."""
    first, second = await seed.seed(database_url, 2)
    server = await serve()
    for vendor, wrong in ((first, 18_000_000), (second, -18_000_000)):
        before = now_ms()
        async with Proxy(server.url) as proxy:
            proxy.down()
            async with program("vendor", proxy.url, vendor.clerk_id, clock=wrong, **DOWN) as app:
                await app.do("ping", fixes=[{"lat": LAT, "long": LONG}] * 5)
                proxy.up()
                await app.do("flushed")
                await app.do("ping", fixes=[{"lat": LAT, "long": LONG}] * 5)
                await app.do("flushed")
                assert not app.named("rejected")
        times = await stored(database_url, vendor.vendor_id)
        assert len(times) == 10
        assert before - 5000 <= times[0] <= times[-1] <= now_ms() + 5000


@pytest.mark.parametrize("by", [-18_000_000, 18_000_000])
async def test_a_clock_that_is_set_while_connected(
    program: Start, serve: Serve, database_url: str, request: pytest.FixtureRequest, by: int
) -> None:
    """A phone whose clock is set must not send pings with wrong times until it reconnects."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with program("vendor", server.url, one.clerk_id) as app:
        await app.happens("state", state="connected")
        await app.do("clock", by=by)
        before = now_ms()
        await app.do("ping", fixes=[{"lat": LAT, "long": LONG}])
        await app.do("flushed")
        if by > 0 and "js" in request.node.name:
            # A phone's sleep looks the same, so the first ping is rejected, and the app requests another hello.
            assert (await app.happens("rejected"))["code"] == "ERR_TIMESTAMP_IN_FUTURE"
            await app.happens("state", state="connected", times=2)
            await app.do("ping", fixes=[{"lat": LAT, "long": LONG}])
            await app.do("flushed")
        else:
            assert not app.named("rejected")
            assert len(app.named("state", state="connected")) == 1
    (at,) = await stored(database_url, one.vendor_id)
    assert before - 5000 <= at <= now_ms() + 5000


async def test_what_can_not_be_stored_is_reported_and_forgotten(
    program: Start, serve: Serve, database_url: str
) -> None:
    """A ping that will never be stored must not be sent forever or delay the others."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    now = now_ms()
    async with program("vendor", server.url, one.clerk_id, maxQueue=3) as app:
        await app.happens("state", state="connected")
        late = {"lat": LAT, "long": LONG, "timestamp": now + 3_600_000}
        await app.do("ping", fixes=[late, *pings(0, 1, at=now)])
        await app.do("flushed")
        assert (await app.happens("rejected"))["code"] == "ERR_TIMESTAMP_IN_FUTURE"
        assert await stored(database_url, one.vendor_id) == [now]
        await app.do("disconnect")
        await app.do("ping", fixes=pings(1, 5, at=now))
        gone = [t for event in app.named("dropped") for t in event["timestamps"]]
        assert gone == [now + 1000, now + 2000]  # the queue is limited: the oldest are dropped with an event


async def test_open_and_closed_survive_a_cut(program: Start, serve: Serve, database_url: str) -> None:
    """A vendor who closes in a tunnel is closed once the phone is connected again."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    async with CustomerApp(server.url) as customer, Proxy(server.url) as proxy:
        await customer.watch("w", circle(LAT, LONG, 5000))
        async with program("vendor", proxy.url, one.clerk_id, **DOWN) as app:
            await app.do("ping", fixes=[{"lat": LAT, "long": LONG}])
            await app.do("flushed")
            proxy.down()
            await app.happens("state", state="reconnecting")
            await app.do("open", open=False)
            proxy.up()
            await eventually(
                lambda: customer.views["w"].get(one.vendor_id, {}).get("open") is False, "closed, as the customer sees"
            )


async def test_a_view_is_true_again_after_every_cut(
    program: Start, database_url: str, serving_url: str, redis_url: str
) -> None:
    """After a reconnect a customer must see what entered, moved and left meanwhile."""
    vendors = await seed.seed(database_url, 4)
    area = {"area": circle(LAT, LONG, 2000)}
    truth: dict[str, tuple[float, float]] = {}
    async with ServerProcess(serving_url, redis_url) as server, Proxy(server.url) as proxy:  # noqa: SIM117
        async with program("customer", proxy.url) as app:
            await app.do("watch", id="w", wanted=area)
            for round_ in range(4):
                apps = [VendorApp(server.url, v.clerk_id) for v in vendors]
                for n, (vendor, phone) in enumerate(zip(vendors, apps, strict=True)):
                    if n == 3 and round_ % 2:
                        at = (LAT + 0.1, LONG)  # outside
                        truth.pop(vendor.vendor_id, None)
                    else:
                        at = (LAT + n / 1000, LONG + round_ / 1000)
                        truth[vendor.vendor_id] = at
                    async with phone:
                        await phone.ping(*at)
                        await phone.acked(1)
                    if n == 1:
                        proxy.cut()
                await app.sees("w", truth)
            await server.end(signal.SIGTERM)  # graceful: `bye` has the time to reconnect
            await app.happens("state", state="reconnecting", code=1012)
            await server.start()
            await app.sees("w", truth)
            before = len(app.named("state", state="reconnecting"))
            await server.end(signal.SIGKILL)
            await app.happens("state", state="reconnecting", times=before + 1)
            assert (await app.do("view", id="w"))["fresh"] is False  # the view is outdated, and not fresh
            await server.start()
            await app.sees("w", truth)
            await app.do("move", id="w", wanted={"area": circle(LAT, LONG, 150)})
            await app.sees("w", {})
            await app.do("move", id="w", wanted={"area": {"center": {"lat": LAT, "long": LONG}, "radius": 1e9}})
            assert (await app.happens("error"))["error"]["code"] == "ERR_AREA_TOO_LARGE"


async def test_a_view_of_more_vendors_than_a_snapshot_has(program: Start, serve: Serve, database_url: str) -> None:
    """A view larger than a snapshot continues in updates; the app must end with all vendors, also moving ones."""
    running, vendors = await serve(), await seed.seed(database_url, 1100)
    truth: dict[str, tuple[float, float]] = {}
    async with aiohttp.ClientSession(running.url) as session, program("customer", running.url) as app:

        async def report(number: int, lat: float) -> None:
            vendor = vendors[number]
            truth[vendor.vendor_id] = lat, LONG + number % 50 / 1e4
            async with session.post(
                f"/v1/vendors/{vendor.vendor_id}/locations",
                json={"lat": lat, "long": LONG + number % 50 / 1e4},
                headers={"Authorization": f"Bearer {make_token(SECRET, vendor.clerk_id, 600)}"},
            ) as answer:
                assert answer.status == 200

        async def differ() -> list[str]:
            view = {c["vendorId"]: (c["lat"], c["long"]) for c in (await app.do("view", id="w"))["vendors"]}
            return [id for id in view.keys() | truth.keys() if view.get(id) != truth.get(id)]

        async def same() -> bool:
            return not await differ()

        for first in range(0, 1100, 50):
            await asyncio.gather(*(report(number, LAT + first / 1e5) for number in range(first, first + 50)))
        watching = app.begin("watch", id="w", wanted={"area": circle(LAT, LONG, 5000)})
        for first in range(0, 1100, 110):
            await asyncio.gather(*(report(number, LAT - first / 1e5) for number in range(first, first + 11)))
        await app.happens("done", number=watching)
        await eventually(same, "a view of all 1,100", within=30)


async def test_a_dead_link_is_noticed_by_both_apps(program: Start, serve: Serve, database_url: str) -> None:
    """A connection that dies without a close must be detected and replaced by both clients."""
    (one,) = await seed.seed(database_url, 1)
    server = await serve()
    quick: dict[str, Any] = {"silence": 500, "answerTimeout": 3000}
    async with Proxy(server.url) as proxy:  # noqa: SIM117
        async with (
            program("customer", proxy.url, **quick) as customer,
            program("vendor", proxy.url, one.clerk_id, **quick) as vendor,
        ):
            await customer.do("watch", id="w", wanted={"area": circle(LAT, LONG, 2000)})
            await customer.sees("w", {})
            await vendor.happens("state", state="connected")
            await asyncio.sleep(2.5)  # silent, but alive: it answered the client's request
            assert not customer.named("state", state="reconnecting")
            proxy.freeze()
            vendor.begin("ping", fixes=[{"lat": LAT, "long": LONG, "timestamp": now_ms()}])
            await customer.happens("state", state="reconnecting", code=1006)
            await vendor.happens("state", state="reconnecting", code=1006)
            proxy.thaw()
            await vendor.do("flushed")
            await customer.sees("w", {one.vendor_id: (LAT, LONG)})


async def test_tokens_are_renewed_and_a_refused_one_is_not_tried_for_ever(
    program: Start, serve: Serve, database_url: str
) -> None:
    """An expiring token is replaced on the open connection; without a new one the app reports it and stops."""
    first, second = await seed.seed(database_url, 2)
    server = await serve(watch_auth="required", jwt_leeway=0.0)
    short, ends = make_token(SECRET, first.clerk_id, 8), now_ms() + 8000
    async with program("vendor", server.url, token=short) as app:
        await app.happens("state", state="connected")
        await app.do("token", token=make_token(SECRET, first.clerk_id, 600))
        await app.happens("token", refresh=True)
        await asyncio.sleep((ends - now_ms()) / 1000 + 2.5)  # past the token's expiry and the next check
        assert not app.named("state", state="reconnecting")
        await app.do("ping", fixes=[{"lat": LAT, "long": LONG}])
        await app.do("flushed")
    async with program("customer", server.url, token="no.such.token") as app:
        assert (await app.happens("state", state="failed"))["code"] == 4401
        assert len(app.named("state", state="connecting")) == 2
        await app.do("token", token=make_token(SECRET, first.clerk_id, 600))
        await app.do("connect")
        await app.do("watch", id="w", wanted={"area": circle(LAT, LONG, 2000)})
        await app.sees("w", {first.vendor_id: (LAT, LONG)})
    async with program("vendor", server.url, first.clerk_id, vendorId=second.vendor_id) as app:
        assert (await app.happens("state", state="failed"))["code"] == 4403
        assert len(app.named("state", state="connecting")) == 1
