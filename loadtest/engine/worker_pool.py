"""The workers of a run, local processes and workers on other machines: sends commands and receives reports."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import sys
from collections.abc import Callable, Sequence
from typing import Self

import orjson
from aiohttp import WSMsgType, web

from loadtest import RunFailed
from loadtest.engine.population import SHARE, Share
from loadtest.engine.worker import LONGEST_MESSAGE, Message

PREPARE_WITHIN = 60.0
END_WITHIN = 20.0
MAX_QUOTED = 2000


class LocalMember:
    """A worker process on this machine. The token secret goes by its pipe: a command line can be read by everybody."""

    ended = False

    def __init__(self, share: Share, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.share = share
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._said = b""

    @classmethod
    async def start(cls, share: Share) -> Self:
        """Starts a process for this share."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtest.engine.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_MESSAGE,
        )
        return cls(share, process)

    async def order(self, order: Message) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):  # the process is gone, which `listen` notices
            self._stdin.write(orjson.dumps(order) + b"\n")
            await self._stdin.drain()

    async def listen(self, received: Callable[[Message], None]) -> None:
        quoting = asyncio.create_task(self._quote())
        try:
            while line := await self._stdout.readline():
                received(orjson.loads(line))
            code = await self._process.wait()
            if not self.ended:
                said = self._said.decode("utf-8", "replace").strip().splitlines()
                cause = f"its process ended with {code}: {said[-1] if said else 'it said nothing'}"
                received({"is": "failed", "cause": cause})
        finally:
            quoting.cancel()

    async def close(self) -> None:
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_WITHIN)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _quote(self) -> None:
        while data := await self._stderr.read(4096):
            self._said = (self._said + data)[-MAX_QUOTED:]


class RemoteMember:
    """A worker on another machine that has connected to the coordinator."""

    share: Share
    ended = False

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self.gone = asyncio.Event()

    async def order(self, order: Message) -> None:
        with contextlib.suppress(ConnectionError):  # `listen` notices
            await self._socket.send_bytes(orjson.dumps(order))

    async def listen(self, received: Callable[[Message], None]) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                received(orjson.loads(message.data))
        self.gone.set()
        if not self.ended:
            received({"is": "failed", "cause": f"its connection ended with {self._socket.close_code}"})

    async def close(self) -> None:
        await self._socket.close()
        self.gone.set()


Member = LocalMember | RemoteMember
"""One worker as the pool sees it: `order` sends, `listen` passes on what it reports until it ends."""


class Coordinator:
    """Serves `GET /worker` for workers on other machines, and a live page at `GET /`; an async context manager.

    `page` returns the page's HTML. Workers prove that they know `key`.
    """

    def __init__(self, host: str, port: int, key: str, page: Callable[[], str]) -> None:
        self.host, self.port, self.key = host, port, key
        self.page = page
        self._arrived: asyncio.Queue[RemoteMember] = asyncio.Queue()
        self._waiting = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/worker", self._worker)
        app.router.add_get("/", self._page)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        try:
            await site.start()
        except OSError as failed:
            raise RunFailed(f"the coordinator can't listen on {self.host}:{self.port}: {failed}") from None
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def members(self, count: int, within: float) -> list[RemoteMember]:
        """Waits for `count` workers; raises RunFailed when they do not come within `within` s."""
        found: list[RemoteMember] = []
        self._waiting = count
        try:
            async with asyncio.timeout(within):
                while len(found) < count:
                    found.append(await self._arrived.get())
        except TimeoutError:
            raise RunFailed(
                f"{len(found)} of {count} workers connected within {within:g} s; start each with "
                f"`python -m loadtest worker http://HOST:{self.port} --key KEY`"
            ) from None
        return found

    async def _worker(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            return web.Response(status=401, text="the key is wrong")
        if self._waiting <= 0:
            return web.Response(status=409, text="no more workers are needed")
        self._waiting -= 1
        socket = web.WebSocketResponse(max_msg_size=LONGEST_MESSAGE, heartbeat=10.0)
        await socket.prepare(request)
        member = RemoteMember(socket)
        self._arrived.put_nowait(member)
        await member.gone.wait()
        return socket

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=self.page(), content_type="text/html", headers={"Cache-Control": "no-store"})


class WorkerPool:
    """The workers of a run, each with its share; an async context manager that never leaves one behind.

    `next` returns what a worker reports, and raises RunFailed when one fails. The first shares go to `remote` workers.
    """

    def __init__(self, shares: Sequence[Share], remote: Sequence[RemoteMember] = ()) -> None:
        self.members: list[Member] = list(remote)
        self.clock = (0.0, 0.0)
        """The offset of the worker whose clock is furthest from the server's, and its error, in ms."""
        self.on_acked: Callable[[Message], None] = lambda _: None
        """Called with the acked pings that vendors' workers report."""
        for member, share in zip(remote, shares, strict=False):
            member.share = share
        self._local = shares[len(remote) :]
        self._reports: asyncio.Queue[tuple[Member, Message]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            for share in self._local:
                self.members.append(await LocalMember.start(share))
            for member in self.members:
                self._tasks.append(asyncio.create_task(self._listen(member)))
                await member.order({"do": "prepare", "share": SHARE.dump_python(member.share, mode="json")})
            ready = await self.gather("ready", self.members, PREPARE_WITHIN)
            self.clock = max(((one["offset_ms"], one["error_ms"]) for one in ready), key=lambda one: abs(one[0]))
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave()

    def of(self, kind: str) -> list[Member]:
        """Returns the workers of one kind."""
        return [member for member in self.members if member.share.kind == kind]

    async def order(self, order: Message, members: Sequence[Member] | None = None) -> None:
        """Sends the same order to all, or to some."""
        for member in self.members if members is None else members:
            await member.order(order)

    async def next(self) -> tuple[Member, Message]:
        """Returns the next report; passes acked pings on to the customers' workers by itself."""
        member, message = await self._reports.get()
        while message["is"] == "acked":
            self.on_acked(message)
            audited = [one for one in self.of("customers") if one.share.audited]
            await self.order({**message, "do": "acked"}, audited)
            member, message = await self._reports.get()
        if message["is"] == "failed":
            raise RunFailed(
                f"worker {member.share.number} of the {member.share.kind} failed: {message['cause']}; "
                "what it measured is lost with it"
            )
        return member, message

    async def gather(self, kind: str, members: Sequence[Member], within: float) -> list[Message]:
        """Returns a report of this kind from each; raises RunFailed when one does not come in time."""
        missing = {id(member) for member in members}
        found = []
        try:
            async with asyncio.timeout(within):
                while missing:
                    member, message = await self.next()
                    if message["is"] == kind and id(member) in missing:
                        missing.discard(id(member))
                        found.append(message)
        except TimeoutError:
            raise RunFailed(
                f"{len(missing)} of {len(members)} workers were not {kind} within {within:g} s; "
                "is this machine too busy?"
            ) from None
        return found

    async def _listen(self, member: Member) -> None:
        def received(message: Message) -> None:
            # at once, as the connection may close before anybody takes the report
            member.ended = member.ended or message["is"] == "ended"
            self._reports.put_nowait((member, message))

        await member.listen(received)

    async def _leave(self) -> None:
        await asyncio.gather(*(member.close() for member in self.members), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
