"""Parts of the development server; the command `dev` is tested as a whole in tests/e2e/cli/test_main.py."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import aiohttp
import pytest

from streamer import settings
from streamer.dev import development, folder
from streamer.dev.development import dev_server
from streamer.dev.folder import kept_secret
from streamer.dev.simulate import CENTRE
from streamer.errors import Unavailable
from tests.support.apps import CustomerApp, circle, eventually


async def test_a_redis_that_is_away_is_named_without_its_password(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names a given Redis that is down, without its password, and no file claims that the server runs."""
    monkeypatch.setattr(development, "READY_TIMEOUT", 0.5)
    given = settings.load(database_url=database_url, redis_url="redis://:dont-tell@127.0.0.1:1", port=0)
    steps: list[str] = []
    with pytest.raises(Unavailable, match="redis: ") as away:
        async with dev_server(given, tmp_path, 0, steps.append):
            raise AssertionError("it is not ready")
    assert "dont-tell" not in str(away.value)
    assert steps == ["migrating the database", "starting the server"]
    assert not (tmp_path / folder.SERVICES).exists()


async def test_services_of_another(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """With given services two servers may share a folder: the one that ends first keeps the other's URLs."""
    given = settings.load(database_url=database_url, redis_url=redis_url, port=0)
    services = tmp_path / folder.SERVICES
    async with dev_server(given, tmp_path, 0, print) as second:
        async with dev_server(given, tmp_path, 0, print) as first:
            assert first.http in services.read_text()
        assert not services.exists()
        services.write_text(second.http)
    assert services.read_text() == second.http


def test_the_secret(tmp_path: Path) -> None:
    """The secret is kept, so that a token outlives a restart; only its owner may read it, whatever the umask."""
    before = os.umask(0)
    try:
        secret = kept_secret(tmp_path)
    finally:
        os.umask(before)
    assert len(secret) >= 32
    assert kept_secret(tmp_path) == secret
    assert stat.S_IMODE((tmp_path / folder.SECRET).stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [folder.SECRET]


async def test_all_simulated_vendors_are_there(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """All of the two hundred requested vendors move, some are closed, and watchers can read their history."""
    given = settings.load(database_url=database_url, redis_url=redis_url, port=0)
    async with dev_server(given, tmp_path, 120, print) as developed, CustomerApp(developed.http) as customer:
        await customer.watch("w", circle(*CENTRE, 50_000))
        await eventually(lambda: len(customer.views["w"]) == 120, "all of them", within=30)
        cards = customer.views["w"].values()
        await eventually(lambda: 60 < sum(card["open"] for card in cards) < 120, "most are open")
        url = f"{developed.http}/v1/vendors/{next(iter(customer.views['w']))}/locations"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 200
