"""A server in a process of its own, to kill and start again on the same port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.apps import SECRET, eventually


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """`streamer serve` on a database and Redis; settings by name, as in `streamer/settings.py`."""

    def __init__(self, database_url: str, redis_url: str, **settings: Any) -> None:
        self._port = free_port()
        changed = {"jwt_secret": SECRET, "watch_auth": "optional", "port": self._port, "pool_size": 4, **settings}
        self._environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            **{f"STREAMER_{name.upper()}": str(value) for name, value in changed.items()},
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it listens, or will again."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.end(signal.SIGKILL)

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from streamer.cli import main; main()",
            "serve",
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def ready() -> bool:
            assert process.returncode is None, f"the server ended with {process.returncode}"
            try:
                async with aiohttp.ClientSession() as session, session.get(f"{self.url}/readyz") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(ready, "a server process that is ready", within=60)

    @property
    def status(self) -> int | None:
        """How it ended."""
        return None if self._process is None else self._process.returncode

    async def end(self, number: signal.Signals) -> None:
        """Send a signal that ends it, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        await self._process.wait()
