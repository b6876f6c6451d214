"""The settings: each documented, all mistakes reported at once, nothing secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer import settings
from streamer.cli import config
from streamer.errors import SettingsError
from streamer.settings import Settings
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "settings.md"
UNCOUNTED = {"port"}
"""Numbers that are no amount of anything."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the developer's environment, and no `.env`."""
    for name in Settings.model_fields:
        monkeypatch.delenv(settings.variable(name), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_explained(name: str) -> None:
    """Who has to change a setting at night finds what it does, in what it is counted, and what it may be."""
    field = Settings.model_fields[name]
    assert len(field.description or "") > 10
    if field.annotation in (int, float):
        assert (settings.unit(name) != "") == (name not in UNCOUNTED), "a number needs a unit"
        assert config.bounds(name), "a number needs bounds"
    assert settings.variable(name) in config.page()


def test_the_page_is_the_table() -> None:
    """docs/settings.md is made from the code; made by hand it would soon be wrong."""
    told = "make it anew: .venv/bin/streamer config --markdown > docs/settings.md"
    assert PAGE.read_text(encoding="utf-8") == config.page(), told


def test_the_page_has_every_part() -> None:
    """A heading whose setting was renamed would vanish, and with it the order of the page."""
    assert set(config.PARTS) <= set(Settings.model_fields)
    assert next(iter(Settings.model_fields)) in config.PARTS
    assert config.page().count("\n## ") == len(config.PARTS)


def test_the_defaults_stand() -> None:
    """Without any setting the documented defaults are in force."""
    configured = settings.load()
    assert (configured.port, configured.watch_auth, configured.env) == (8080, "required", "production")
    assert settings.given() == {}
    assert {row.origin for row in config.in_force()} == {"default"}


def test_precedence_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line before environment before .env before default; an empty value is none."""
    (tmp_path / ".env").write_text("STREAMER_PORT=1\nSTREAMER_HOST=a.example\nSTREAMER_STALL=7\nDATABASE_URL=\n")
    monkeypatch.setenv("STREAMER_PORT", "2")
    monkeypatch.setenv("STREAMER_HOST", "b.example")
    monkeypatch.setenv("STREAMER_POOL_SIZE", "")
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/venta")
    configured = settings.load(port=3, host=None)
    assert (configured.port, configured.host, configured.stall, configured.pool_size) == (3, "b.example", 7.0, 8)
    origins = {name: one.origin for name, one in settings.given(port=3, host=None).items()}
    assert origins == {
        "port": "command line",
        "host": "environment",
        "stall": ".env",
        "database_url": "environment",
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pool_size", "1.5", "STREAMER_POOL_SIZE: must be a whole number (connections), not '1.5'"),
        ("pool_size", "201", "STREAMER_POOL_SIZE: must be at most 200 connections, not '201'"),
        ("stall", "0", "STREAMER_STALL: must be more than 0 s, not '0'"),
        ("stall", "inf", "STREAMER_STALL: must be a finite number, not 'inf'"),
        ("max_radius", "far", "STREAMER_MAX_RADIUS: must be a number (m), not 'far'"),
        ("watch_auth", "off", "STREAMER_WATCH_AUTH: must be 'required' or 'optional', not 'off'"),
        ("jwt_secret", "short", "STREAMER_JWT_SECRET: must be at least 32 bytes long, not 5"),
        ("heartbeat", "60", "STREAMER_HEARTBEAT: 60 s must be less than STREAMER_SILENCE, 60 s: "),
        ("database_url", "postgresql://u:hidden@h:x/d", "DATABASE_URL can't be used: its host, port or database"),
        ("redis_url", "http://:hidden@h", "REDIS_URL must be like redis://user:password@host:6379/0"),
        ("redis_url", "redis://:hidden@", "REDIS_URL must be like redis://"),
        ("redis_url", "redis://:hidden@h:99999", "REDIS_URL must be like redis://"),
        ("redis_url", "redis://:hid[den@h", "REDIS_URL must be like redis://"),
        ("statement_timeout", "0.0001", "STREAMER_STATEMENT_TIMEOUT: must be at least 0.1 s, not '0.0001'"),
        ("statement_timeout", "3e6", "STREAMER_STATEMENT_TIMEOUT: must be at most 86400 s, not '3e6'"),
        ("origins", "*", "STREAMER_ORIGINS: must be like https://app.example, without a path, or empty for all"),
        ("origins", "app.example", "STREAMER_ORIGINS: must be like https://app.example, without a path"),
        ("origins", "https://a.example https://b.example/map", "STREAMER_ORIGINS: must be like https://app.example"),
        ("jwks_url", "issuer.example/jwks", "STREAMER_JWKS_URL must be an http:// or https:// URL, not 'issuer."),
    ],
)
def test_a_mistake_is_named(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the setting, what it must be and what it was; a secret is not repeated."""
    monkeypatch.setenv(settings.variable(name), value)
    with pytest.raises(SettingsError) as wrong:
        config.load()
    (line,) = str(wrong.value).splitlines()[1:]
    assert line.strip().startswith(said)
    for hidden in ("hidden", "hid[den", "short"):
        assert hidden not in str(wrong.value)


def test_urls_that_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks unusual and works must not be refused."""
    for url in (
        "redis://localhost",
        "rediss://user:p%23w@cache.example:6380/3?ssl_check_hostname=no",
        "redis+cluster://10.0.0.1:7000",
        "redis://[::1]:6379/0",
    ):
        monkeypatch.setenv("REDIS_URL", url)
        config.load()
    assert config.masked_redis("rediss://user:p%23w@cache:6380/3?password=x") == "rediss://user:***@cache:6380/3"
    assert config.masked_redis("redis://:pw@[::1]:6379") == "redis://:***@[::1]:6379"
    assert config.masked_redis("redis://h") == "redis://h"


def test_origins_are_as_browsers_write_them() -> None:
    """One that never matches would keep a site's own pages out."""
    given = "https://App.example/, http://[::1]:8080 capacitor://localhost null"
    expected = ("https://app.example", "http://[::1]:8080", "capacitor://localhost", "null")
    assert settings.load(origins=given).origins == expected


def test_unknown_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting would have no effect, unnoticed."""
    (tmp_path / ".env").write_text("STREAMER_PROT=1\nOTHER=1\nREDIS_URI=x\n")
    monkeypatch.setenv("STREAMER_POOLSIZE", "2")
    monkeypatch.setenv("STREAMER_POOL_SIZE", "3")
    assert settings.unknown_variables() == ["STREAMER_POOLSIZE", "STREAMER_PROT"]
