"""Debian's mosquitto, an MQTT broker that keeps its sessions on disk."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from aiomqtt import Client, ProtocolVersion

from tests.support.apps import eventually
from tests.support.process import free_port

SEARCHED = f"{os.environ['PATH']}:/usr/sbin"
PROGRAM = shutil.which("mosquitto", path=SEARCHED)
PASSWORDS = shutil.which("mosquitto_passwd", path=SEARCHED)

ACCESS = """\
pattern write owntracks/%u/+

user streamer
topic read owntracks/+/+
"""


class Mosquitto:
    """A broker with these users, each with the password `secret`: a phone may publish only under its own name."""

    def __init__(self, folder: Path, *users: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._users = ("streamer", *users)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The broker's URL for the bridge."""
        return f"mqtt://streamer:secret@127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        passwords = self._folder / "passwords"
        passwords.touch(mode=0o600)
        for user in self._users:
            command = [str(PASSWORDS), "-b", str(passwords), user, "secret"]
            process = await asyncio.create_subprocess_exec(*command)
            assert await process.wait() == 0
        (self._folder / "access").write_text(ACCESS)
        given = {
            "listener": f"{self.port} 127.0.0.1",
            "allow_anonymous": "false",
            "password_file": str(passwords),
            "acl_file": str(self._folder / "access"),
            "persistence": "true",
            "persistence_location": f"{self._folder}/",
            "max_queued_messages": "100000",
        }
        if os.geteuid() == 0:
            given["user"] = "nobody"
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        (self._folder / "mosquitto.conf").write_text("".join(f"{name} {value}\n" for name, value in given.items()))
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.end(signal.SIGKILL)

    async def start(self) -> None:
        """Starts it, and waits until it answers."""
        assert PROGRAM is not None
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                PROGRAM, "-c", str(self._folder / "mosquitto.conf"), stdout=log, stderr=log
            )
        process = self._process

        async def answers() -> bool:
            assert process.returncode is None, (self._folder / "mosquitto.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            await writer.wait_closed()
            return True

        await eventually(answers, "mosquitto")

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it; SIGTERM has it save its sessions."""
        assert self._process is not None
        self._process.send_signal(number)
        await self._process.wait()

    def phone(self, user: str) -> Client:
        """A connection like OwnTracks'."""
        return Client("127.0.0.1", self.port, username=user, password="secret", protocol=ProtocolVersion.V311)
