"""The `streamer` command in a separate process and folder, with a clean environment."""

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
"""Seconds; far more than any command takes, so that a busy machine does not fail."""


class Done(NamedTuple):
    """A process's exit status and output."""

    status: int
    out: str
    err: str


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with only the given settings of the server."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "200", **given}


class Command:
    """A process that runs until it or the context ends (by Ctrl-C, or killed if it does not react)."""

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
        """Sends a signal, such as that of Ctrl-C."""
        self._process.send_signal(number)

    def say(self, text: str) -> None:
        """Writes to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    async def said(self, text: str) -> str:
        """Waits until stderr contains a text, and returns all of stderr."""

        def there() -> bool:
            assert self._process.returncode is None or text in self.err, f"it ended without {text!r}: {self.err}"
            return text in self.err

        await eventually(there, f"{text!r}, only: {self.err}", ENDS_WITHIN)
        return self.err

    async def url(self) -> str:
        """Waits until it serves, and returns its URL."""
        await self.said("serving on http")
        return self.err.partition("serving on ")[2].split()[0].rstrip(",")

    async def ended(self) -> Done:
        """Waits for its end, and returns the outcome."""
        async with asyncio.timeout(ENDS_WITHIN):
            await asyncio.gather(*self._readers)
            return Done(await self._process.wait(), self.out, self.err)

    async def _read(self, name: str) -> None:
        stream = getattr(self._process, "stdout" if name == "out" else "stderr")
        while data := await stream.read(65536):
            setattr(self, name, getattr(self, name) + data.decode())


async def run(*arguments: str, folder: Path, **given: str) -> Done:
    """Runs a command to its end."""
    async with Command(*arguments, folder=folder, **given) as command:
        return await command.ended()


def command(words: list[str]) -> Any:
    """Returns the command at the beginning of these words."""
    found: Any = typer.main.get_command(cli)
    for word in words:
        found = found.get_command(None, word) if hasattr(found, "get_command") else None
    return found


def options(found: Any) -> set[str]:
    return {option for parameter in found.params for option in parameter.opts}


def runs(line: str) -> None:
    """Checks that a command line's command and options exist."""
    words = [word for word in line.split()[1:] if not word.startswith("-")]
    found = command(words[:2] if words[0] == "db" else words[:1])
    assert found is not None, line
    given = {word.partition("=")[0] for word in line.split() if word.startswith("--")}
    assert given <= options(found), line
