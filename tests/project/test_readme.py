"""Runs the snippets of README.md."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, VendorApp
from tests.support.paths import ROOT

README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
VENDOR, CUSTOMER = re.findall(r"```python\n(.*?)```", README, re.S)
LAST = re.findall(r"```sh\n(.*?)```", README, re.S)[-1]


async def started(code: str, *arguments: str) -> asyncio.subprocess.Process:
    """A snippet as a program of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-c", code, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def test_the_vendor_app(serve: Serve, database_url: str) -> None:
    """It receives the hello, sends a ping, and receives the ack."""
    (one,) = [await seed.seed(database_url)][0]
    running = await serve()
    process = await started(VENDOR, running.url, make_token(SECRET, one.clerk_id, 600))
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    hello, ack = out.decode().splitlines()
    assert "'type': 'hello'" in hello
    assert ack == "{'type': 'ack', 'seq': 1}"


async def test_the_customer_app(serve: Serve, database_url: str) -> None:
    """It prints the number of vendors nearby, also after one enters."""
    (one,) = await seed.seed(database_url, 1)
    running = await serve()
    process = await started(CUSTOMER, running.url)
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"0 vendors nearby\n"
        async with VendorApp(running.url, one.clerk_id) as vendor:
            await vendor.ping(52.2297, 21.0122)
            assert await asyncio.wait_for(process.stdout.readline(), 60) == b"1 vendors nearby\n"
    finally:
        process.kill()
        await process.communicate()


async def test_the_engineers_commands(empty_database_url: str, redis_url: str) -> None:
    """Two exports and two commands bring a server up on a database that is empty."""
    *exports, _, serve = [line.split("#")[0].strip() for line in LAST.strip().splitlines()]
    assert exports[0].startswith("export DATABASE_URL=")
    assert serve == "streamer serve --host 0.0.0.0"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DATABASE_URL": empty_database_url,
        "REDIS_URL": redis_url,
        "STREAMER_JWT_SECRET": SECRET,
    }
    upgrade = await asyncio.create_subprocess_exec("streamer", "db", "upgrade", env=environment)
    assert await asyncio.wait_for(upgrade.wait(), 60) == 0
    server = await asyncio.create_subprocess_exec(
        "streamer", "serve", "--port", "0", env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert server.stderr is not None
    try:
        said = b""
        while b"serving on http://" not in said:
            line = await asyncio.wait_for(server.stderr.readline(), 60)
            assert line, said
            said += line
    finally:
        server.terminate()
        await asyncio.wait_for(server.communicate(), 60)
    assert server.returncode == 0
