"""The `streamer` command as people run it: a process of its own, in a folder of its own, with a clean environment."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import typer.main

from streamer.cli.main import cli
from tests.support.apps import eventually

STREAMER = Path(sys.executable).with_name("streamer")
ENDS_WITHIN = 300.0
"""Seconds; far above what any of these takes, so that a busy machine is no failure."""


class Done(NamedTuple):
    """How a process ended, and what it said."""

    status: int
    out: str
    err: str


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of the server, but for those that are given."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "200", **given}


class Command:
    """A process that runs until it ends or the context does (by Ctrl-C, as it should; killed, if it won't)."""

    def __init__(self, *arguments: str, folder: Path, program: str | Path = STREAMER, **given: str) -> None:
        self.err = ""
        self.out = ""
        self._command = (str(program), *arguments)
        self._folder = folder
        self._environment = environment(given)
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=self._folder,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._readers = [asyncio.create_task(self._read("out")), asyncio.create_task(self._read("err"))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process.returncode is None:
                self.signal(signal.SIGINT)
                await self.ended()
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            await asyncio.gather(*self._readers, return_exceptions=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, as Ctrl-C does."""
        self._process.send_signal(number)

    def say(self, text: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    async def said(self, text: str) -> str:
        """All that stderr has once this is in it."""

        def there() -> bool:
            assert self._process.returncode is None or text in self.err, f"it ended without {text!r}: {self.err}"
            return text in self.err

        await eventually(there, f"{text!r}, only: {self.err}", ENDS_WITHIN)
        return self.err

    async def url(self) -> str:
        """Where it serves, once it does."""
        await self.said("serving on http")
        return self.err.partition("serving on ")[2].split()[0].rstrip(",")

    async def ended(self) -> Done:
        """How it ended, waiting for it."""
        async with asyncio.timeout(ENDS_WITHIN):
            await asyncio.gather(*self._readers)
            return Done(await self._process.wait(), self.out, self.err)

    async def _read(self, name: str) -> None:
        stream = getattr(self._process, "stdout" if name == "out" else "stderr")
        while data := await stream.read(65536):
            setattr(self, name, getattr(self, name) + data.decode())


async def run(*arguments: str, folder: Path, **given: str) -> Done:
    """Run a command to its end."""
    async with Command(*arguments, folder=folder, **given) as command:
        return await command.ended()


def command(words: list[str]) -> Any:
    """The command that these words begin with."""
    found: Any = typer.main.get_command(cli)
    for word in words:
        found = found.get_command(None, word) if hasattr(found, "get_command") else None
    return found


def options(found: Any) -> set[str]:
    return {option for parameter in found.params for option in parameter.opts}


def runs(line: str) -> None:
    """A command line of ours: the command and its options exist."""
    words = [word for word in line.split()[1:] if not word.startswith("-")]
    found = command(words[:2] if words[0] == "db" else words[:1])
    assert found is not None, line
    given = {word.partition("=")[0] for word in line.split() if word.startswith("--")}
    assert given <= options(found), line
