"""A server in a separate process, to kill and restart on the same port."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import socket
import sys
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from streamer.operations.embedded import PORTS
from tests.support.apps import SECRET, eventually

# Below those that embedded servers choose. A test process keeps the last ports that it was given, by a lock on the byte
# of that number in a file of all test processes, so none takes a port before its server starts or while it restarts.
CHOICE = range(10_000, PORTS.start)
KEPT = 500
_kept: deque[int] = deque()
_locks = Path(tempfile.gettempdir(), f"streamer-test-ports-{os.getuid()}").open("wb")  # noqa: SIM115  # until exit


def free_port() -> int:
    """Returns an unused port that neither this test process nor another one takes while its server restarts."""
    for port in random.sample(CHOICE, len(CHOICE)):
        with suppress(OSError), socket.socket() as probe:
            if port in _kept:
                continue
            fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.bind(("127.0.0.1", port))
            _kept.append(port)
            if len(_kept) > KEPT:
                fcntl.lockf(_locks, fcntl.LOCK_UN, 1, _kept.popleft())
            return port
    raise OSError("no port is free")


class ServerProcess:
    """`streamer serve` on a database and Redis; settings by name, as in `streamer/settings.py`."""

    files: int | None = None
    """Its limit on file descriptors."""

    def __init__(self, database_url: str, redis_url: str, *, log: Path | None = None, **settings: Any) -> None:
        self.port = free_port()
        self._log = log
        changed = {"jwt_secret": SECRET, "watch_auth": "optional", "port": self.port, "pool_size": 4, **settings}
        self._environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            **{f"STREAMER_{name.upper()}": str(value) for name, value in changed.items()},
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Its URL, also while it is stopped."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.end(signal.SIGKILL)

    async def start(self) -> None:
        """Starts it, and waits until it is ready."""
        await self.spawn()
        process = self._process
        assert process is not None

        async def ready() -> bool:
            assert process.returncode is None, f"the server ended with {process.returncode}"
            try:
                async with aiohttp.ClientSession() as session, session.get(f"{self.url}/readyz") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(ready, "a server process that is ready", within=60)

    async def spawn(self) -> None:
        """Starts it without waiting; its output is appended to `log`."""
        limited = () if self.files is None else ("prlimit", f"--nofile={self.files}:{self.files}")
        with open(os.devnull if self._log is None else self._log, "ab") as log:  # noqa: ASYNC230  # a local file
            self._process = await asyncio.create_subprocess_exec(
                *limited,
                sys.executable,
                "-c",
                "from streamer.cli.main import main; main()",
                "serve",
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if it is running."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> None:
        """Waits for its end."""
        assert self._process is not None
        await self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id, also shortly after its end."""
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status."""
        return None if self._process is None else self._process.returncode

    async def end(self, number: signal.Signals) -> None:
        """Sends a signal that ends it, and waits for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        await self._process.wait()
