"""The client under test: a program that reads commands as JSON lines from stdin, and writes events to stdout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Self

import orjson

LONGEST_LINE = 1 << 24


class Program:
    """A process of the program; `events` are what it reported."""

    def __init__(self, command: Sequence[str], kind: str, url: str, settings: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self.changed = asyncio.Event()
        """Set when something was reported, or the process ended."""
        self.errors = b""
        self._command = (*command, kind, url, orjson.dumps(settings).decode())
        self._numbers = count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._read_errors())]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """Kill the process, as when a phone runs out of battery."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._tasks)

    @property
    def ended(self) -> bool:
        """Whether the process has ended by itself, and all it reported was read."""
        return self._tasks[0].done()

    async def end(self) -> None:
        """Wait until it has ended."""
        await asyncio.wait(self._tasks)

    def tell(self, command: dict[str, Any]) -> int:
        """Send a command; return its number, which the program reports when it is done."""
        number = next(self._numbers)
        assert self.process.stdin is not None
        self.process.stdin.write(orjson.dumps({**command, "number": number}) + b"\n")
        return number

    async def until(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Wait for an event that matches, and return it; None if the process ended before."""
        at = 0
        while True:
            self.changed.clear()
            for event in self.events[at:]:
                if matches(event):
                    return event
            at = len(self.events)
            if self.ended:
                return None
            await self.changed.wait()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            async for line in self.process.stdout:
                try:
                    event = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue  # what a runtime prints
                if isinstance(event, dict):
                    self.events.append(event)
                    self.changed.set()
        finally:
            asyncio.get_running_loop().call_soon(self.changed.set)

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(65536):
            self.errors = (self.errors + data)[-2000:]
