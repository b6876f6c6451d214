"""The system under test and its faults: two servers, PostgreSQL, Valkey, their connections, a migration."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg
import redis.asyncio

from streamer.operations.embedded import PostgresServer, ValkeyServer
from streamer.storage import migrate, revisions
from tests.chaos.balancer import Balancer
from tests.chaos.faults import Fault
from tests.support.apps import SECRET
from tests.support.process import ServerProcess
from tests.support.proxy import Proxy
from tests.support.receiver import Receiver

OFFLINE_AFTER = 6.0
LEAVE_AFTER = 6.0
DRAIN_TIMEOUT = 3.0
POOL_SIZE = 4
HOST_DELIVERIES = 16
ANSWERS_WITHIN = 2.0
"""Timeout in seconds of a webhook receiver: the webhooks of a killed process are sent again a little later."""
RESPAWN = 0.2
"""Seconds after which an ended server is restarted, as by a service manager."""
SLOW = 20_000.0
"""Bytes a second through a slow connection."""
HEALED_WITHIN = 90.0


class Stage:
    """All processes, in one folder; `fail` causes and undoes one fault, `healed` waits until all are up again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = PostgresServer(folder, durable=False)
        self.valkey = ValkeyServer(folder)
        self.receiver = Receiver()
        self.servers: dict[str, ServerProcess] = {}
        self.wires: dict[str, Proxy] = {}
        self.starts = 0
        """The number of times a server process was started."""
        self.migrations = 0
        self._held: set[str] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._stack.enter_async_context(self.postgres)
            await self._stack.enter_async_context(self.valkey)
            await migrate.upgrade(self.postgres.url)
            await self._stack.enter_async_context(self.receiver)
            for number in (1, 2):
                name = f"server {number}"
                postgres = self.wires[f"wire {name} to postgresql"] = Proxy(self.postgres.url)
                valkey = self.wires[f"wire {name} to valkey"] = Proxy(self.valkey.url)
                await self._stack.enter_async_context(postgres)
                await self._stack.enter_async_context(valkey)
                server = self.servers[name] = ServerProcess(
                    postgres.url,
                    valkey.url,
                    log=self.folder / f"{name.replace(' ', '-')}.log",
                    offline_after=OFFLINE_AFTER,
                    leave_after=LEAVE_AFTER,
                    drain_timeout=DRAIN_TIMEOUT,
                    pool_size=POOL_SIZE,
                    alert_key=SECRET,
                    alert_development_hosts=f"{self.receiver.host},127.0.0.1",
                    alert_timeout=ANSWERS_WITHIN,
                    alert_host_deliveries=HOST_DELIVERIES,
                )
                keeping = asyncio.create_task(self._keep(name, server), name=f"keep {name}")
                self._stack.push_async_callback(self._end, keeping, server)
            balancer = self.wires["wire clients"] = Balancer([server.url for server in self.servers.values()])
            await self._stack.enter_async_context(balancer)
            await self.healed()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        """The URL to which the apps connect."""
        return self.wires["wire clients"].url

    async def fail(self, fault: Fault) -> None:
        """Waits for the fault's time, causes it, and undoes it at its end."""
        await asyncio.sleep(fault.at)
        if fault.target in self.servers:
            await self._fail_server(fault)
        elif fault.target in self.wires:
            await self._fail_wire(self.wires[fault.target], fault)
        elif fault.target == "migration":
            await self._migrate(fault)
        else:
            await self._fail_service(fault)

    async def healed(self) -> None:
        """Returns once both servers answer; PostgreSQL and Valkey are up since their faults were undone."""

        async def alive(session: aiohttp.ClientSession, url: str) -> bool:
            try:
                async with session.get(f"{url}/livez") as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError, OSError):
                return False

        async with asyncio.timeout(HEALED_WITHIN):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as session:
                for server in self.servers.values():
                    while not await alive(session, server.url):  # noqa: ASYNC110  # another process can't be awaited
                        await asyncio.sleep(0.02)

    async def unready(self) -> list[str]:
        """Returns the failures that the servers' health checks report."""
        found = []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as session:
            for name, server in self.servers.items():
                try:
                    async with session.get(f"{server.url}/readyz") as response:
                        if response.status != 200:
                            found.append(f"{name} is not ready: {(await response.text())[:300]}")
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    found.append(f"{name} does not answer: {error!r}")
        return found

    # inside

    async def _keep(self, name: str, server: ServerProcess) -> None:
        """Restarts a server whenever it ends, like a service manager."""
        while True:
            if name not in self._held:
                await server.spawn()
                self.starts += 1
                await server.wait()
            await asyncio.sleep(RESPAWN)

    async def _end(self, keeping: asyncio.Task[None], server: ServerProcess) -> None:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        server.send(signal.SIGCONT)
        if server.status is None:
            await server.end(signal.SIGKILL)

    async def _fail_server(self, fault: Fault) -> None:
        server = self.servers[fault.target]
        if fault.kind == "stop":
            server.send(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts)
            server.send(signal.SIGCONT)
            return
        self._held.add(fault.target)
        try:
            if fault.kind == "drain":
                server.send(signal.SIGTERM)
                await server.wait()
                if server.status not in (0, -signal.SIGTERM):  # SIGTERM: it was still starting
                    raise AssertionError(f"{fault.target} ended with {server.status} after SIGTERM")
            elif fault.kind == "kill while draining":
                server.send(signal.SIGTERM)
                await asyncio.sleep(min(fault.lasts, 0.5))
                server.send(signal.SIGKILL)
            else:
                server.send(signal.SIGKILL)
            await server.wait()
            if fault.kind == "kill while starting":
                self._held.discard(fault.target)
                await asyncio.sleep(fault.lasts)
                server.send(signal.SIGKILL)
            else:
                await asyncio.sleep(fault.lasts)
        finally:
            self._held.discard(fault.target)

    async def _fail_service(self, fault: Fault) -> None:
        service: PostgresServer | ValkeyServer = self.postgres if fault.target == "postgresql" else self.valkey
        if fault.kind == "stop":
            service.pause()
            await asyncio.sleep(fault.lasts)
            service.resume()
        elif fault.kind == "forget":
            client = redis.asyncio.Redis.from_url(self.valkey.url)
            try:
                await client.flushall()
            finally:
                await client.aclose()
        elif fault.kind == "restart":
            await service.restart()
        else:
            service.kill()
            await asyncio.sleep(fault.lasts)
            await service.start()

    async def _fail_wire(self, wire: Proxy, fault: Fault) -> None:
        if fault.kind == "cut":
            wire.cut()
            await asyncio.sleep(fault.lasts)
            wire.cut()
        elif fault.kind == "refuse":
            wire.down()
            await asyncio.sleep(fault.lasts)
            wire.up()
        elif fault.kind == "freeze":
            wire.freeze()
            await asyncio.sleep(fault.lasts)
            wire.thaw()
        else:
            wire.rate = SLOW
            await asyncio.sleep(fault.lasts)
            wire.rate = None

    async def _migrate(self, fault: Fault) -> None:
        """Migrates a fresh database, killed in the middle or not; a second run must bring it to the newest schema."""
        self.migrations += 1
        name = f"migrated_{self.migrations}"
        url = self.postgres.url.rsplit("/", 1)[0] + f"/{name}"
        await self._insist(lambda: self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        await self._insist(lambda: self._execute(f"CREATE DATABASE {name}"))
        process = await self._upgrade(url)
        if fault.kind == "kill":
            with suppress(TimeoutError):
                async with asyncio.timeout(fault.lasts):
                    await process.wait()
            if process.returncode is None:
                process.kill()
        await process.wait()
        for _ in range(20):
            again = await self._upgrade(url)
            if await again.wait() == 0:
                break
            await asyncio.sleep(0.5)
        await self._insist(lambda: revisions.require_newest(url))
        await self._insist(lambda: self._execute(f"DROP DATABASE {name} WITH (FORCE)"))

    async def _upgrade(self, url: str) -> asyncio.subprocess.Process:
        with (self.folder / "migration.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", "from streamer.cli.main import main; main()", "db", "upgrade"),
                env={"DATABASE_URL": url, "PATH": ""},
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
            )

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.postgres.url, timeout=5)
        try:
            await connection.execute(statement, timeout=10)
        finally:
            await connection.close(timeout=2)

    async def _insist(self, act: Callable[[], Any]) -> None:
        """Calls the function, and retries while PostgreSQL has a fault of its own."""
        last: Exception | None = None
        for _ in range(40):
            try:
                await act()
                return
            except Exception as error:
                last = error
                await asyncio.sleep(0.3)
        raise AssertionError(f"not possible for long: {last!r}") from last
