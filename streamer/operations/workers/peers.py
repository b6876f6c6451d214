"""The other workers of one server, as one worker sees them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from streamer.operations.workers.scoreboard import Scoreboard

ANSWER_TIMEOUT = 1.0
"""Seconds until a worker that does not answer is left out; `failures` reports it soon."""


class Peers:
    """Worker `number` and the others on the scoreboard; each listens for the others on a socket in `folder`."""

    def __init__(self, scoreboard: Scoreboard, number: int, folder: Path) -> None:
        self.number = number
        self._scoreboard = scoreboard
        self._folder = folder

    @property
    def socket(self) -> Path:
        """The Unix socket of this worker."""
        return self._socket(self.number)

    def beat(self, cause: str) -> None:
        """Records a heartbeat of this worker, and what keeps it from serving."""
        self._scoreboard.beat(self.number, time.monotonic(), cause)

    def failures(self) -> dict[str, str]:
        """Returns the problems of the other workers, by name."""
        return self._scoreboard.failures(time.monotonic(), but=self.number)

    async def ask(self, path: str, accept: str) -> dict[int, bytes]:
        """Returns the answers of the other workers to a GET, without those that do not answer."""
        others = [number for number in range(self._scoreboard.count) if number != self.number]
        answers = await asyncio.gather(*[self._ask(number, path, accept) for number in others])
        return {number: answer for number, answer in zip(others, answers, strict=True) if answer is not None}

    async def _ask(self, number: int, path: str, accept: str) -> bytes | None:
        connector = aiohttp.UnixConnector(str(self._socket(number)))
        timeout = aiohttp.ClientTimeout(ANSWER_TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(f"http://worker{path}", headers={"Accept": accept}) as response,
            ):
                return await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    def _socket(self, number: int) -> Path:
        return self._folder / f"{number}.sock"
