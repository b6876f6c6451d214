"""The other workers of one server, as one of them sees them: what is wrong with them, and what they answer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from streamer.operations.workers.scoreboard import Scoreboard

ANSWER_WITHIN = 1.0
"""Seconds; a worker that takes longer is left out, and `troubles` tells of it soon."""


class Peers:
    """Worker `number` and those beside it on the board; each listens for the others in `folder`."""

    def __init__(self, board: Scoreboard, number: int, folder: Path) -> None:
        self.number = number
        self._scoreboard = board
        self._folder = folder

    @property
    def socket(self) -> Path:
        """Where this worker listens for the others."""
        return self._socket(self.number)

    def beat(self, cause: str) -> None:
        """A sign of life of this worker, and what it can't do."""
        self._scoreboard.beat(self.number, time.monotonic(), cause)

    def troubles(self) -> dict[str, str]:
        """What is wrong with the others, by name."""
        return self._scoreboard.troubles(time.monotonic(), but=self.number)

    async def ask(self, path: str, accept: str) -> dict[int, bytes]:
        """What each of the others answers; those that don't are left out."""
        others = [number for number in range(self._scoreboard.count) if number != self.number]
        answers = await asyncio.gather(*[self._ask(number, path, accept) for number in others])
        return {number: answer for number, answer in zip(others, answers, strict=True) if answer is not None}

    async def _ask(self, number: int, path: str, accept: str) -> bytes | None:
        connector = aiohttp.UnixConnector(str(self._socket(number)))
        timeout = aiohttp.ClientTimeout(ANSWER_WITHIN)
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
