"""The load test's vendor app on a connection: acks, rejects, and what it does when the connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import orjson
import pytest
from aiohttp import web

from loadtest import RunFailed
from loadtest.clients.target import Identity, Target
from loadtest.clients.vendor import Ping, Vendor
from loadtest.clients.websocket import Close
from tests.support.loadtest_stand_in import standing_in
from tests.support.running import ready, running, settled

IDENTITY = Identity("v 1", "clerk", "Ice cream")
Answer = Callable[[web.WebSocketResponse, list[dict[str, Any]]], Any]


def vendor(target: Target) -> Vendor:
    """A vendor app without a token that matters."""
    return Vendor(target, IDENTITY, lambda: "token", Random(0))


def ping(timestamp: int) -> Ping:
    """A ping at a time; where does not matter."""
    return Ping(timestamp, 52.0, 21.0, timestamp)


class VendorSide:
    """A server's side of vendor sockets: greets, keeps what comes, answers by a script of one function a connection."""

    def __init__(self, *answers: Answer, durable: list[int | None] | None = None) -> None:
        self.got: list[list[dict[str, Any]]] = []
        self._answers = list(answers)
        self._durable = durable or []

    async def __call__(self, socket: web.WebSocketResponse) -> None:
        """One connection."""
        number = len(self.got)
        self.got.append([])
        durable = self._durable[number] if number < len(self._durable) else None
        await send(socket, type="hello", vendorId="v 1", time=0, durable=durable, maxBatch=500)
        answer = self._answers[min(number, len(self._answers) - 1)]
        async for message in socket:
            decoded = orjson.loads(message.data)
            pings = decoded["pings"] if decoded["type"] == "pings" else [decoded]
            self.got[number] += pings
            await answer(socket, pings)

    def timestamps(self) -> list[list[int]]:
        """What came, by connection."""
        return [[item["timestamp"] for item in pings] for pings in self.got]


async def send(socket: web.WebSocketResponse, **message: Any) -> None:
    """Send a message as JSON."""
    await socket.send_str(orjson.dumps(message).decode())


async def ack(socket: web.WebSocketResponse, pings: list[dict[str, Any]]) -> None:
    """Ack all."""
    await send(socket, type="ack", seq=pings[-1]["seq"])


async def drop(socket: web.WebSocketResponse, pings: list[dict[str, Any]]) -> None:
    """Say nothing and go."""
    await socket.close(code=1012)


async def test_acked_and_rejected_pings_are_distinguished() -> None:
    """The counts of a run, and what is looked for in the database, are made of these."""

    async def odd_only(socket: web.WebSocketResponse, pings: list[dict[str, Any]]) -> None:
        for item in pings:
            if item["timestamp"] % 2 == 0:
                await send(socket, type="reject", seq=item["seq"], code="ERR_INVALID_COORDINATES", message="no")
        await ack(socket, pings)

    async with standing_in({"/v1/vendor": VendorSide(odd_only)}) as target:
        app = vendor(target)
        async with running([app]):
            for timestamp in range(1, 6):
                app.ping(ping(timestamp))
            assert await settled([app], 10) == 0
        assert [item.timestamp for item in app.acked] == [1, 3, 5]
        assert app.rejections() == {"ERR_INVALID_COORDINATES": 2}
        assert (app.sent, app.resent, app.waiting) == (5, 0, 0)
        assert app.violations == []


async def test_what_was_not_acked_goes_out_again_after_a_reconnect() -> None:
    """Whether acked pings are lost can be tested only by a client that follows the protocol."""
    side = VendorSide(drop, ack)
    async with standing_in({"/v1/vendor": side}) as target:
        app = vendor(target)
        async with running([app]):
            app.ping(ping(1))
            await asyncio.sleep(0)
            app.ping(ping(2))
            assert await settled([app], 10) == 0
        assert sorted({timestamp for got in side.timestamps() for timestamp in got}) == [1, 2]
        assert side.timestamps()[1] == [1, 2]
        assert [item["seq"] for item in side.got[1]] == [1, 2]
        assert [item.timestamp for item in app.acked] == [1, 2]
        assert (app.connections, app.closes) == (2, {1012: 1})
        assert app.sent == 2


async def test_the_ping_that_hello_names_is_not_sent_again() -> None:
    """`durable` is how a server says what it stored when the ack was lost with the connection."""
    side = VendorSide(drop, ack, durable=[None, 1])
    async with standing_in({"/v1/vendor": side}) as target:
        app = vendor(target)
        async with running([app]):
            app.ping(ping(1))
            assert await settled([app], 10) == 0
            app.ping(ping(2))
            assert await settled([app], 10) == 0
        assert side.timestamps() == [[1], [2]]
        assert [item.timestamp for item in app.acked] == [1, 2]


async def test_a_long_outbox_goes_out_in_batches_that_the_server_takes() -> None:
    """A batch over the limit would be refused whole."""
    sizes: list[int] = []

    async def count(socket: web.WebSocketResponse, pings: list[dict[str, Any]]) -> None:
        sizes.append(len(pings))
        await ack(socket, pings)

    async with standing_in({"/v1/vendor": VendorSide(count)}) as target:
        app = vendor(target)
        for timestamp in range(1200):
            app.ping(ping(timestamp))
        async with running([app]):
            assert await settled([app], 10) == 0
        assert sizes == [500, 500, 200]


@pytest.mark.parametrize("code", [4403, 4404, 4400])
async def test_a_final_close_is_final(code: int) -> None:
    """An app that reconnects after `not your vendor` would keep the run from ending."""

    async def refuse(socket: web.WebSocketResponse) -> None:
        await socket.close(code=code, message=b"go away")

    async with standing_in({"/v1/vendor": refuse}) as target:
        app = vendor(target)
        await asyncio.wait_for(app.run(), 10)
        assert app.ended == Close(code, "go away")
        assert app.connections == 1


async def test_a_rejected_token_is_tried_anew_but_not_forever() -> None:
    """A fresh token mends an expired one; a wrong secret is mended by nothing."""
    tokens: list[str] = []

    async def refuse(socket: web.WebSocketResponse) -> None:
        await socket.close(code=4401)

    def token() -> str:
        tokens.append("token")
        return "token"

    async with standing_in({"/v1/vendor": refuse}) as target:
        app = Vendor(target, IDENTITY, token, Random(0))
        await asyncio.wait_for(app.run(), 20)
        assert app.ended is not None
        assert app.ended.code == 4401
        assert len(tokens) == 3


async def test_a_goodbye_sets_when_to_come_back() -> None:
    """The server spreads its clients over time; if all came back at once, they would overload it again."""

    async def bye(socket: web.WebSocketResponse, pings: list[dict[str, Any]]) -> None:
        await send(socket, type="bye", reconnectAfterMs=300)
        await socket.close(code=1001)

    async with standing_in({"/v1/vendor": VendorSide(bye, ack)}) as target:
        app = vendor(target)
        async with running([app]):
            began = asyncio.get_running_loop().time()
            app.ping(ping(1))
            assert await settled([app], 10) == 0
            assert asyncio.get_running_loop().time() - began >= 0.3


async def test_a_server_that_is_not_there_ends_in_a_message() -> None:
    """The first mistake everyone makes is to forget to start the server."""
    app = vendor(Target("127.0.0.1", 1, False))
    task = asyncio.create_task(app.run())
    with pytest.raises(RunFailed, match=r"was not ready within 0\.2 s .*; is the server up"):
        await ready(app, 0.2)
    app.stop()
    await asyncio.wait_for(task, 10)


async def test_nonsense_from_the_server_is_kept_as_a_violation_and_the_run_goes_on() -> None:
    """One broken message must fail the check, and still leave the other counts to read."""

    async def nonsense(socket: web.WebSocketResponse, pings: list[dict[str, Any]]) -> None:
        await socket.send_str("no json")
        await send(socket, type="ack", seq=99)
        await send(socket, type="ack", seq="1")
        await send(socket, type="error", code="ERR_INTERNAL", message="sorry")
        await ack(socket, pings)

    async with standing_in({"/v1/vendor": VendorSide(nonsense)}) as target:
        app = vendor(target)
        async with running([app]):
            app.ping(ping(1))
            assert await settled([app], 10) == 0
        assert len(app.violations) == 3
        assert app.errors == {"ERR_INTERNAL": 1}
        assert len(app.acked) == 1
