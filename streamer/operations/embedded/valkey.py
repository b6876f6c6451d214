"""An embedded Valkey."""

from __future__ import annotations

import asyncio
import signal

from streamer.operations.embedded.programs import valkey_program
from streamer.operations.embedded.server import HOST, STOP_TIMEOUT, EmbeddedServer


class ValkeyServer(EmbeddedServer):
    """A Valkey that keeps nothing on disk."""

    kind = "Valkey"
    program = "valkey-server"
    stop_signals = ((signal.SIGTERM, STOP_TIMEOUT / 2),)

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://{HOST}:{self.port}/0"

    async def _prepare(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)

    def _command(self) -> list[str]:
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.data),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "set-proc-title": "no",  # so that the command line shows the folder
            "hz": "1",  # fewer wake-ups
        }
        return [str(valkey_program()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    async def _ready(self) -> bool:
        try:
            async with asyncio.timeout(0.3):
                reader, writer = await asyncio.open_connection(HOST, self.port)
                try:
                    # its own pid: another server may listen on a port that this one failed to get
                    writer.write(b"INFO server\r\n")
                    return f"process_id:{self.pid}\r\n".encode() in await reader.readuntil(b"tcp_port:")
                finally:
                    writer.transport.abort()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            return False
