"""Three Sentinels that watch one primary."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import redis.asyncio

from streamer.operations.embedded.programs import valkey_program
from tests.support.apps import eventually
from tests.support.process import free_port

SERVICE = "mymaster"


class Sentinels:
    """Runs three Sentinels with short timeouts; `url` is the server's URL of the primary by them."""

    def __init__(self, folder: Path, primary_port: int) -> None:
        self._folder = folder
        self._primary_port = primary_port
        self._processes: list[asyncio.subprocess.Process] = []
        self.ports: list[int] = []

    @property
    def url(self) -> str:
        """`redis+sentinel://…/mymaster`."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    async def __aenter__(self) -> Sentinels:
        for number in range(3):
            folder = self._folder / f"sentinel_{number}"
            folder.mkdir(parents=True)
            port = free_port()
            config = folder / "sentinel.conf"
            config.write_text(
                f"bind 127.0.0.1\nport {port}\ndir {folder}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {self._primary_port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} 1000\n"
                f"sentinel failover-timeout {SERVICE} 5000\n"
            )
            self.ports.append(port)
            with (folder / "sentinel.log").open("ab") as log:
                self._processes.append(
                    await asyncio.create_subprocess_exec(
                        str(valkey_program()), str(config), "--sentinel", stdout=log, stderr=log
                    )
                )
        try:
            await eventually(self._know_each_other, "three Sentinels that know each other", 20)
        except AssertionError as error:
            await self.__aexit__()
            logs = sorted(self._folder.glob("sentinel_*/sentinel.log"))
            raise AssertionError("\n\n".join([str(error), *(log.read_text() for log in logs)])) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _know_each_other(self) -> bool:
        ended = [process.returncode for process in self._processes if process.returncode is not None]
        assert not ended, f"Sentinels ended with {ended}"
        for port in self.ports:
            try:
                async with redis.asyncio.Redis(host="127.0.0.1", port=port, protocol=2) as client:
                    masters: Any = await client.sentinel_masters()
            except redis.RedisError:
                return False
            state = masters[SERVICE]
            if state["num-other-sentinels"] < 2 or state["num-slaves"] < 0 or not state["is_master"]:
                return False
        return True
