"""The receiver and commands of docs/alerts.md, against a real server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys

import orjson
import pytest

from streamer.accounts.tokens import make_token
from streamer.storage import seed
from tests.conftest import Serve
from tests.e2e.alerts.test_alerts import begun
from tests.e2e.transport.test_http_alerts import signed_in
from tests.support.apps import SECRET, VendorApp, described
from tests.support.paths import ROOT
from tests.support.process import free_port

PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```\w+ (\w+)\n(.*?)```", PAGE, re.S))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
async def test_the_first_alert(serve: Serve, database_url: str) -> None:
    """A reader's first steps: a receiver, an alert, a test, and a vendor that enters."""
    (one,) = await seed.seed(database_url, 1)
    port = free_port()
    server = await serve(alert_key=SECRET, alert_development_hosts=(f"127.0.0.1:{port}",))
    token = make_token(SECRET, one.clerk_id, 600)
    receiver = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", BLOCKS["receiver"], str(port)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert receiver.stdout is not None
    try:
        environment = {**os.environ, "URL": server.url, "TOKEN": token, "RECEIVER": f"http://127.0.0.1:{port}/"}
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-euc", BLOCKS["create"]), env=environment, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(shell.communicate(), 60)
        assert shell.returncode == 0
        created = orjson.loads(said.splitlines()[0])
        assert created["secret"].startswith("whsec_")
        line = (await asyncio.wait_for(receiver.stdout.readline(), 60)).decode()
        assert '"type":"alert.test"' in line
        async with signed_in(server.url, one.clerk_id) as session, VendorApp(server.url, one.clerk_id) as app:
            await begun(session, created["id"])
            await app.ping(52.2297, 21.0122)
            line = (await asyncio.wait_for(receiver.stdout.readline(), 60)).decode()
        assert '"type":"vendor.entered"' in line
    finally:
        receiver.kill()
        await receiver.wait()


def test_the_webhook_of_the_page_is_the_servers() -> None:
    """The page's example must be a message that the server sends, as readers copy it."""
    described(("Webhook",))["Webhook"].validate(orjson.loads(BLOCKS["webhook"]))
