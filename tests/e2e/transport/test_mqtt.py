"""OwnTracks over MQTT, through a real broker: a phone's messages are stored and shown, whatever is killed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import trustme
from aiomqtt import Client
from structlog.testing import capture_logs

from streamer import lifecycle, settings
from streamer.app import Server
from streamer.operations.embedded import PostgresServer
from streamer.storage import migrate, seed
from streamer.storage.seed import SeededVendor
from streamer.transport.mqtt import IN_FLIGHT, MqttBridge
from streamer.transport.mqtt_url import parse_broker
from tests.conftest import Serve, connected
from tests.support import mosquitto
from tests.support.apps import CustomerApp, circle, eventually, now_ms
from tests.support.commands import Command, run
from tests.support.mosquitto import Mosquitto
from tests.support.process import free_port
from tests.support.tls import TlsFront

pytestmark = pytest.mark.skipif(mosquitto.PROGRAM is None, reason="mosquitto is not here")

HERE = (52.23, 21.01)


def location(at: int, lat: float = HERE[0], **fields: Any) -> bytes:
    """Returns a location in OwnTracks' format."""
    return orjson.dumps({"_type": "location", "lat": lat, "lon": HERE[1], "tst": at, **fields})


async def publish(phone: Client, user: str, payload: bytes, device: str = "phone", qos: int = 1) -> None:
    """Publishes until the broker confirms, like the app by default."""
    await phone.publish(f"owntracks/{user}/{device}", payload, qos=qos, retain=True)


async def times(url: str) -> set[int]:
    """Returns the stored timestamps, epoch seconds."""
    async with connected(url) as connection:
        rows = await connection.fetch("""SELECT EXTRACT(EPOCH FROM "timestamp")::bigint FROM "locations" """)
    return {row[0] for row in rows}


@pytest.fixture
async def vendors(database_url: str) -> list[SeededVendor]:
    return await seed.seed(database_url, 2)


@pytest.fixture
async def broker(tmp_path: Path, vendors: list[SeededVendor]) -> AsyncIterator[Mosquitto]:
    users = [user for vendor in vendors for user in (vendor.clerk_id, vendor.vendor_id)]
    async with Mosquitto(tmp_path, *users, "stranger") as started:
        yield started


@asynccontextmanager
async def bridge(
    broker: Mosquitto, database_url: str, redis_url: str, *, url: str | None = None, **changed: Any
) -> AsyncIterator[Server]:
    """A running bridge, optionally with another URL of the broker."""
    configured = settings.load(database_url=database_url, redis_url=redis_url, drain_timeout=2.0, **changed)
    async with lifecycle.bridging(configured, parse_broker(url or broker.url), "venta-streamer") as server:

        def receives() -> bool:
            return server.mqtt is not None and server.mqtt.cause is None

        await eventually(receives, "a bridge that receives")
        yield server


async def acked(server: Server, count: int, result: str) -> None:
    """Waits until this number of messages was acked with this result."""
    assert server.mqtt is not None
    messages = server.mqtt.messages
    await eventually(lambda: messages[result] == count, f"{count} {result}")


async def test_a_phone_is_seen_and_stored(
    serve: Serve,
    broker: Mosquitto,
    vendors: list[SeededVendor],
    database_url: str,
    serving_url: str,
    serving_redis_url: str,
) -> None:
    """MQTT is OwnTracks' default: with broker and user configured in the app, the vendor is on the map."""
    running = await serve()
    one, other = vendors
    at = now_ms() // 1000
    async with (
        CustomerApp(running.url) as customer,
        bridge(broker, serving_url, serving_redis_url),
        broker.phone(one.clerk_id) as phone,
        broker.phone(other.vendor_id) as another,
    ):
        await customer.watch("w", circle(*HERE, 5_000))
        await publish(phone, one.clerk_id, location(at, cog=90, vel=36))
        await publish(another, other.vendor_id, location(at, 52.24))
        await customer.sees("w", {one.vendor_id: HERE, other.vendor_id: (52.24, HERE[1])})
        card = customer.views["w"][one.vendor_id]
        assert (card["heading"], card["speed"], card["online"]) == (90, 10, True)
    assert await times(database_url) == {at}


async def test_what_never_can_be_stored_is_acked(
    broker: Mosquitto, vendors: list[SeededVendor], database_url: str, serving_url: str, serving_redis_url: str
) -> None:
    """A message that is resent forever would finally block the messages of all phones."""
    user = vendors[0].clerk_id
    at = now_ms() // 1000
    with capture_logs() as logged:
        async with bridge(broker, serving_url, serving_redis_url) as server:
            async with broker.phone(user) as phone, broker.phone("stranger") as stranger:
                for payload in (b"\xff", b"{", b'{"_type":"encrypted","data":"x"}', location(at - 400 * 86_400)):
                    await publish(phone, user, payload)
                await publish(phone, user, location(at + 3600))
                await publish(phone, user, location(at, 0.0, lon=0.0))
                await publish(phone, user, b" " * ((1 << 20) + 1))
                await publish(stranger, "stranger", location(at))
                for payload in (b"", b'{"_type":"lwt","tst":1}', b'{"_type":"waypoint","lat":1,"lon":1,"tst":1}'):
                    await publish(phone, user, payload)
                await publish(phone, user, location(at))
            await acked(server, 1, "stored")
            await acked(server, 8, "refused")
            await acked(server, 3, "empty")
            assert server.counters.rejected.total() == 8
    assert await times(database_url) == {at}
    assert all(line["level"] != "error" for line in logged if "level" in line)
    reasons = [line["reason"] for line in logged if line["event"] == "refused a message over MQTT"]
    assert any("stranger" in reason for reason in reasons)
    async with bridge(broker, serving_url, serving_redis_url) as server:
        async with broker.phone(user) as phone:
            await publish(phone, user, location(at + 1))
        await acked(server, 1, "stored")
        assert server.mqtt is not None
        assert server.mqtt.messages == {"stored": 1}, "the broker had nothing left to send again"


async def test_a_phone_cannot_report_for_another(
    broker: Mosquitto, vendors: list[SeededVendor], database_url: str, serving_url: str, serving_redis_url: str
) -> None:
    """The broker's access rules decide who may publish to a topic; a device can't report for another user's vendor."""
    one, other = vendors
    at = now_ms() // 1000
    async with bridge(broker, serving_url, serving_redis_url) as server:
        async with broker.phone(one.clerk_id) as phone:
            await publish(phone, other.clerk_id, location(at - 9))
            await publish(phone, one.clerk_id, location(at), device=other.vendor_id)
        await acked(server, 1, "stored")
    async with connected(database_url) as connection:
        rows = await connection.fetch("""SELECT "vendorId" FROM "locations" """)
    assert [row[0] for row in rows] == [one.vendor_id]


async def test_several_vendors_of_a_user_are_told_apart_by_device(
    broker: Mosquitto, vendors: list[SeededVendor], database_url: str, serving_url: str, serving_redis_url: str
) -> None:
    """Two trucks of one owner must not be shown as one that jumps between two positions."""
    one, other = vendors
    async with connected(database_url) as connection:
        await connection.execute(
            """UPDATE "vendors" SET "userId" = (SELECT "userId" FROM "vendors" WHERE "id" = $1)""", one.vendor_id
        )
    at = now_ms() // 1000
    async with bridge(broker, serving_url, serving_redis_url) as server:
        async with broker.phone(one.clerk_id) as phone:
            for device in (one.vendor_id, other.vendor_id, "phone"):
                await publish(phone, one.clerk_id, location(at), device=device)
        await acked(server, 2, "stored")
        await acked(server, 1, "refused")


async def test_nothing_is_lost_when_the_bridge_is_killed(
    broker: Mosquitto,
    vendors: list[SeededVendor],
    database_url: str,
    serving_url: str,
    serving_redis_url: str,
    tmp_path: Path,
) -> None:
    """The bridge is repeatedly killed between receiving and committing: the broker resends messages without an ack."""
    user, start = vendors[0].clerk_id, now_ms() // 1000 - 3_000
    given = {"DATABASE_URL": serving_url, "REDIS_URL": serving_redis_url, "STREAMER_MQTT_URL": broker.url}
    sent: set[int] = set()

    async def report() -> None:
        async with broker.phone(user) as phone:
            for n in range(2_000):
                await publish(phone, user, location(start + n))
                sent.add(start + n)

    reporting: asyncio.Task[None] | None = None
    for _ in range(3):
        async with Command("mqtt", folder=tmp_path, **given) as process:
            await process.said("receiving over MQTT")
            reporting = reporting or asyncio.create_task(report())
            had = len(await times(database_url))

            async def more(had: int = had) -> bool:
                return len(await times(database_url)) > had

            await eventually(more, "pings that are stored")
            process.signal(signal.SIGKILL)
            await process.ended()
    assert reporting is not None
    await reporting
    async with Command("mqtt", folder=tmp_path, **given) as process:

        async def all_there() -> bool:
            return await times(database_url) == sent

        await eventually(all_there, "all that was published")
    assert "Traceback" not in process.err


async def test_an_outage_of_postgresql_costs_nothing(
    tmp_path: Path, postgres_server: PostgresServer, serving_redis_url: str
) -> None:
    """Pings must not be acked during an outage: a bridge that is killed then has them only in memory."""
    await migrate.upgrade(postgres_server.url)
    (vendor,) = await seed.seed(postgres_server.url, 1)
    start, sent = now_ms() // 1000 - 1_000, set()
    async with Mosquitto(tmp_path, vendor.clerk_id) as broker, broker.phone(vendor.clerk_id) as phone:
        async with bridge(broker, postgres_server.url, serving_redis_url) as server:
            await publish(phone, vendor.clerk_id, location(start))
            await acked(server, 1, "stored")
            await postgres_server.stop()
            for n in range(3 * IN_FLIGHT):
                await publish(phone, vendor.clerk_id, location(start + n))
                sent.add(start + n)
            bridge_of = server.mqtt
            assert bridge_of is not None
            await eventually(lambda: bridge_of.waiting == IN_FLIGHT, "as many messages as the broker sends unacked")
            assert bridge_of.messages == {"stored": 1}
        await postgres_server.start()
        async with bridge(broker, postgres_server.url, serving_redis_url):

            async def all_there() -> bool:
                return await times(postgres_server.url) == sent

            await eventually(all_there, "all that was published")


async def test_the_broker_restarts(
    broker: Mosquitto, vendors: list[SeededVendor], database_url: str, serving_url: str, serving_redis_url: str
) -> None:
    """The bridge must reconnect automatically."""
    user, at = vendors[0].clerk_id, now_ms() // 1000
    async with bridge(broker, serving_url, serving_redis_url) as server:
        assert server.mqtt is not None
        await broker.end()
        await eventually(lambda: server.mqtt is not None and server.mqtt.cause is not None, "an outage")
        assert "mqtt" in server.health.unready()
        await broker.start()
        await eventually(lambda: server.mqtt is not None and server.mqtt.cause is None, "a bridge that is back")
        async with broker.phone(user) as phone:
            await publish(phone, user, location(at))
        await acked(server, 1, "stored")


async def test_a_broker_that_refuses_says_so(
    broker: Mosquitto, serving_url: str, serving_redis_url: str, tmp_path: Path
) -> None:
    """A wrong password must be reported."""
    url = f"mqtt://streamer:wrong@127.0.0.1:{broker.port}"
    given = {"DATABASE_URL": serving_url, "REDIS_URL": serving_redis_url}
    async with Command("mqtt", "--broker", url, folder=tmp_path, **given) as process:
        await process.said("Not authorized")
    assert "wrong" not in process.err


async def test_over_tls(
    broker: Mosquitto, vendors: list[SeededVendor], serving_url: str, serving_redis_url: str, tmp_path: Path
) -> None:
    """Positions and the password must not be sent to a broker with another certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(trusted := str(tmp_path / "authority.pem"))
    user = vendors[0].clerk_id
    async with TlsFront(broker.url, authority.issue_cert("localhost")) as front:
        url = front.url.replace("mqtt:", "mqtts:")
        async with bridge(broker, serving_url, serving_redis_url, url=f"{url}?ssl_ca_certs={trusted}") as server:
            async with broker.phone(user) as phone:
                await publish(phone, user, location(now_ms() // 1000))
            await acked(server, 1, "stored")
        given = {"DATABASE_URL": serving_url, "REDIS_URL": serving_redis_url}
        async with Command("mqtt", "--broker", url, folder=tmp_path, **given) as process:
            await process.said("certificate verify failed")


async def test_a_wrong_url_is_refused(tmp_path: Path) -> None:
    """With an http:// URL, or none, the bridge must not start, as it would never receive."""
    for arguments in ((), ("--broker", "http://localhost"), ("--broker", "mqtt://h/path"), ("--broker", "mqtt://h:x")):
        done = await run("mqtt", *arguments, folder=tmp_path, DATABASE_URL="postgresql://h/d", REDIS_URL="redis://h")
        assert done.status == 2
        assert "STREAMER_MQTT_URL" in done.err


async def test_operators_see_the_bridge(
    broker: Mosquitto, serving_url: str, serving_redis_url: str, vendors: list[SeededVendor]
) -> None:
    """Its probe and metrics are those of other processes."""
    user = vendors[0].clerk_id
    async with bridge(broker, serving_url, serving_redis_url, admin_port=free_port()) as server:
        async with broker.phone(user) as phone:
            await publish(phone, user, location(now_ms() // 1000))
        await acked(server, 1, "stored")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{server.admin_url}/metrics") as answer:
                text = await answer.text()
            async with session.get(f"{server.admin_url}/readyz") as answer:
                assert answer.status == 200
    assert "streamer_mqtt_up 1.0" in text
    assert 'streamer_mqtt_messages_total{result="stored"} 1.0' in text


async def test_a_bridge_that_is_given_up_is_unready(
    serving_url: str, serving_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge that repeatedly failed after it had connected appeared ready, but stored nothing."""

    async def fail(bridge: MqttBridge) -> None:
        bridge.cause = None
        raise RuntimeError("odd")

    monkeypatch.setattr(MqttBridge, "_connected", fail)
    configured = settings.load(database_url=serving_url, redis_url=serving_redis_url, drain_timeout=2.0)
    async with lifecycle.bridging(configured, parse_broker("mqtt://127.0.0.1"), "bridge") as server:
        await eventually(lambda: "odd" in server.health.unready().get("mqtt", ""), "the bridge given up")
