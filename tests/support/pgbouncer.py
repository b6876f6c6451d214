"""Debian's PgBouncer in front of a PostgreSQL, with the default configuration except its pool mode."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.apps import eventually
from tests.support.process import free_port

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@asynccontextmanager
async def pgbouncer(url: str, folder: Path, pool_mode: str = "transaction", **settings: str) -> AsyncIterator[str]:
    """Runs PgBouncer in front of the server of a URL; yields the URL through it."""
    assert PROGRAM is not None
    place = urlsplit(url)
    port = free_port()
    users = folder / "users.txt"
    users.write_text(f'"{unquote(place.username or "")}" "{unquote(place.password or "")}"\n')
    given = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": str(users),
        "pool_mode": pool_mode,
        **settings,
    }
    lines = "\n".join(f"{name} = {value}" for name, value in given.items())
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(f"[databases]\n* = host={place.hostname} port={place.port}\n\n[pgbouncer]\n{lines}\n")
    command = [PROGRAM]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, users, configuration):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        command += ["--user", "nobody"]
    with (folder / "pgbouncer.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, str(configuration), stdout=log, stderr=log)
    try:

        async def answers() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None, (folder / "pgbouncer.log").read_text()
                return False
            writer.close()
            await writer.wait_closed()
            return True

        await eventually(answers, "PgBouncer")
        user = place.netloc.rpartition("@")[0]
        yield f"postgresql://{user}@127.0.0.1:{port}{place.path}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
