"""The settings as people meet them: looked at closely, the page that documents them, what is in force and why."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamer import settings
from streamer.broker.redis_address import RedisAddress
from streamer.cli.options import Host, Port
from streamer.errors import SettingsError
from streamer.settings import Check, Settings
from streamer.storage import dsn

SERVING: Mapping[tuple[str, ...], str] = {
    ("database_url",): "the PostgreSQL to store in",
    ("redis_url",): "the Redis or Valkey between the processes",
    ("jwt_secret", "jwks_url"): "how tokens are checked",
}
"""What `serve` can't do without, and what for."""

PARTS = {
    "database_url": "Where things are",
    "jwt_secret": "Who may speak",
    "pool_size": "Storage",
    "max_batch": "Vendors",
    "max_watches": "Customers",
    "tiles_url": "The map",
    "max_message": "Sockets",
}
"""The page's headings, by the setting that each stands before."""

REDIS_SCHEMES = tuple(f"{scheme}{kind}" for kind in ("", "+cluster", "+sentinel") for scheme in ("redis", "rediss"))

PAGE = """\
# Settings

Made by `streamer config --markdown` from the table in `streamer/settings.py`.

A setting is an environment variable, or a line of the file `.env` in the working directory; the environment wins, and
`--host` and `--port` win over both. An empty value counts as none. `streamer config` shows what is in force and where
each value came from. `serve` needs `DATABASE_URL`, `REDIS_URL` and `STREAMER_JWT_SECRET` or `STREAMER_JWKS_URL`; `dev`
needs none. In Kubernetes a service called `streamer` sets `STREAMER_PORT` to a URL in the pods around it: name it
otherwise, or set `enableServiceLinks: false`.
"""


def config(
    host: Host = None,
    port: Port = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md instead.")] = False,
) -> None:
    """Print every setting that is in force, secrets masked, and where it came from."""
    if markdown:
        typer.echo(page(), nl=False)
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for variable, value, unit, origin in in_force(host=host, port=port):
        table.add_row(variable, escape(f"{value} {unit}" if unit not in ("", "URL") else value), origin)
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    warn_of_unknown_variables()


def warn_of_unknown_variables() -> None:
    """Name each STREAMER_ variable of the environment that is no setting."""
    for name in settings.strangers():
        close = difflib.get_close_matches(name, list(map(settings.variable, Settings.model_fields)), 1)
        print(f"streamer: {name} is no setting" + (f": {close[0]} is" if close else ""), file=sys.stderr)


def load(needed: Mapping[tuple[str, ...], str] | None = None, **overrides: Any) -> Settings:
    """Settings that the parts can use, as far as can be told without trying; SettingsError names every mistake."""
    return settings.load(checks=CHECKS, needed=needed, **overrides)


class InForce(NamedTuple):
    """One setting as `streamer config` shows it; secrets are masked."""

    variable: str
    value: str
    unit: str
    origin: str


def in_force(**overrides: Any) -> list[InForce]:
    """Every setting's value, and where it came from: command line, environment, .env or default."""
    configured, given = load(**overrides), settings.given(**overrides)
    return [
        InForce(
            settings.variable(name),
            shown(name, getattr(configured, name)),
            settings.unit(name),
            given[name].origin if name in given else "default",
        )
        for name in Settings.model_fields
    ]


def shown(name: str, value: Any) -> str:
    """A value for people; of a secret nothing but where it leads."""
    if value is None:
        return "-"
    if not isinstance(value, SecretStr):
        return ",".join(map(str, value)) or "-" if isinstance(value, tuple) else settings.number(value)
    if name == "database_url":
        return dsn.parse_url(value.get_secret_value()).masked()
    if name == "redis_url":
        return masked_redis(value.get_secret_value())
    return "***"


def masked_redis(url: str) -> str:
    """A Redis URL without its password and parameters."""
    parts = urlsplit(url)
    userinfo, at, place = parts.netloc.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    return f"{parts.scheme}://{user}{':***' if colon else ''}{at}{place}{parts.path}"


def page() -> str:
    """`docs/settings.md`."""
    return "\n".join((PAGE, *_rows())) + "\n"


def _rows() -> Iterator[str]:
    for number, (name, field) in enumerate(Settings.model_fields.items()):
        if name in PARTS:
            yield from ("",) * (number > 0)
            yield from (f"## {PARTS[name]}", "", "| variable | default | unit | range | what |", "| --- " * 5 + "|")
        default = "" if field.default in (None, ()) else settings.number(field.default)
        cells = (f"`{settings.variable(name)}`", default, settings.unit(name), bounds(name), field.description)
        yield f"| {' | '.join(map(str, cells))} |"


def bounds(name: str) -> str:
    """The values that a setting may have."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    limits = {
        limit: settings.number(getattr(of, limit))
        for of in field.metadata
        for limit in ("gt", "ge", "lt", "le", "min_length")
        if getattr(of, limit, None) is not None
    }
    if "min_length" in limits:
        return f"at least {limits['min_length']} bytes"
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}
    return ", ".join(sign + limits[limit] for limit, sign in signs.items() if limit in limits)


def _check_redis(url: str) -> None:
    try:
        parts = urlsplit(url)
        # Of several Sentinels RedisAddress.check reads the hosts.
        several = parts.scheme.endswith("+sentinel")
        usable = parts.scheme in REDIS_SCHEMES and (several or (parts.hostname and (parts.port is None or parts.port)))
    except ValueError:
        usable = False  # urlsplit's own words quote what may be part of a password
    if not usable:
        raise SettingsError(
            f"REDIS_URL must be like redis://user:password@host:6379/0 ({', '.join(REDIS_SCHEMES)}); "
            "write /, ?, #, @ and : in the password percent-encoded (%2F, %3F, %23, %40, %3A)"
        )
    RedisAddress.check(url)


def _check_jwks(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"STREAMER_JWKS_URL must be an http:// or https:// URL, not {url!r}")


def _check_secret(secret: str) -> None:
    if "-----BEGIN" in secret:
        raise SettingsError("must be a secret, not a key in PEM: public keys come by STREAMER_JWKS_URL")


CHECKS: Mapping[str, Check] = {
    "jwt_secret": _check_secret,
    "jwt_secret_previous": _check_secret,
    "database_url": dsn.parse_url,
    "redis_url": _check_redis,
    "jwks_url": _check_jwks,
}
