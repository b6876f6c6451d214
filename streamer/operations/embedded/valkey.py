"""An embedded Valkey."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from streamer.operations.embedded import server
from streamer.operations.embedded.programs import valkey_program
from streamer.operations.embedded.server import HOST, STOP_TIMEOUT, EmbeddedServer, Progress


class ValkeyServer(EmbeddedServer):
    """A Valkey that keeps nothing on disk; with `cluster_enabled` a node of a cluster, without slots."""

    kind = "Valkey"
    program = "valkey-server"
    stop_signals = ((signal.SIGTERM, STOP_TIMEOUT / 2),)

    def __init__(self, folder: Path, *, cluster_enabled: bool = False, progress: Progress | None = None) -> None:
        super().__init__(folder, progress=progress)
        self.cluster_enabled = cluster_enabled

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
        }
        if self.cluster_enabled:
            options |= {
                "cluster-enabled": "yes",
                "cluster-config-file": "nodes.conf",
                "cluster-port": str(server.free_port()),
                "cluster-node-timeout": "2000",
            }
        else:
            options["hz"] = "1"  # fewer wake-ups; a cluster's nodes need the default
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
