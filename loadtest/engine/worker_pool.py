"""The worker processes of a run: started, told what to do, listened to, and never left behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import orjson

from loadtest.engine.share import Share
from loadtest.errors import RunFailed

LONGEST_LINE = 512 << 20
PREPARE_WITHIN = 60.0
END_WITHIN = 20.0
MOST_QUOTED = 2000


class Member:
    """One worker process."""

    def __init__(self, share: Share, process: asyncio.subprocess.Process) -> None:
        self.share = share
        self.process = process
        self.said = b""
        self.ended = False

    async def tell(self, order: dict[str, Any]) -> None:
        """One order; nothing when the process is gone, which is noticed elsewhere."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(orjson.dumps(order) + b"\n")
            await self.process.stdin.drain()
        except (ConnectionError, RuntimeError):
            pass


class Crew:
    """Use it as an async context manager; `next` gives what the workers tell, RunFailed when one of them fails."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = shares
        self.members: list[Member] = []
        self._told: asyncio.Queue[tuple[Member, dict[str, Any]]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            for share in self._shares:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "loadtest.engine.worker"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    limit=LONGEST_LINE,
                )
                member = Member(share, process)
                self.members.append(member)
                self._tasks += [asyncio.create_task(self._listen(member)), asyncio.create_task(self._hear(member))]
            # the secret goes by the pipe: a command line can be read by everybody
            for member in self.members:
                await member.tell({"do": "prepare", "share": member.share.as_json()})
            await self.gather("ready", self.members, PREPARE_WITHIN)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    def of(self, kind: str) -> list[Member]:
        """The workers of one kind."""
        return [member for member in self.members if member.share.kind == kind]

    async def tell(self, order: dict[str, Any], members: Sequence[Member] | None = None) -> None:
        """The same order for all, or for some."""
        for member in self.members if members is None else members:
            await member.tell(order)

    async def next(self) -> tuple[Member, dict[str, Any]]:
        """What is told next, by whom."""
        member, message = await self._told.get()
        if message["is"] == "failed":
            raise RunFailed(
                f"worker {member.share.number} of the {member.share.kind} failed: {message['cause']}; "
                "what it measured is lost with it"
            )
        member.ended = member.ended or message["is"] == "ended"
        return member, message

    async def gather(self, kind: str, members: Sequence[Member], within: float) -> list[dict[str, Any]]:
        """An answer of this kind from each; RunFailed when one does not give it in time."""
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

    # inside

    async def _listen(self, member: Member) -> None:
        assert member.process.stdout is not None
        while line := await member.process.stdout.readline():
            self._told.put_nowait((member, orjson.loads(line)))
        code = await member.process.wait()
        if not member.ended:
            said = member.said.decode("utf-8", "replace").strip().splitlines()
            cause = f"its process ended with {code}: {said[-1] if said else 'it said nothing'}"
            self._told.put_nowait((member, {"is": "failed", "cause": cause}))

    async def _hear(self, member: Member) -> None:
        assert member.process.stderr is not None
        while data := await member.process.stderr.read(4096):
            member.said = (member.said + data)[-MOST_QUOTED:]

    async def _leave(self) -> None:
        """Let them end, and end those that don't."""
        for member in self.members:
            assert member.process.stdin is not None
            member.process.stdin.close()
        waits = [asyncio.create_task(member.process.wait()) for member in self.members]
        if waits:
            await asyncio.wait(waits, timeout=END_WITHIN)
        for member in self.members:
            if member.process.returncode is None:
                member.process.kill()
        for task in (*waits, *self._tasks):
            if task in self._tasks:
                task.cancel()
        await asyncio.gather(*waits, *self._tasks, return_exceptions=True)
