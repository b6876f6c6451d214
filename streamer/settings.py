"""All settings: name, default, unit and help. They are read once from the environment and `.env`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, NoDecode, SettingsConfigDict

from streamer.errors import SettingsError

Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(
        lambda value: tuple(filter(None, value.replace(",", " ").split())) if type(value) is str else value
    ),
]
"""Names separated by commas or spaces."""

ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")

Check = Callable[[str], object]
"""Raises SettingsError or ValueError for an unusable value. The message must not quote a secret."""


def coordinates(text: str) -> tuple[float, float]:
    """Parses `lat,long` in degrees; raises ValueError with the reason."""
    lat, _, long = text.partition(",")
    try:
        place = float(lat), float(long)
    except ValueError:
        raise ValueError("must be latitude and longitude, like 52.2297,21.0122") from None
    if not (abs(place[0]) <= 90 and abs(place[1]) <= 180):
        raise ValueError("must be a latitude of -90 to 90 and a longitude of -180 to 180 degrees")
    return place


def _setting(default: Any, help: str, unit: str = "", env: str | None = None, **bounds: Any) -> Any:
    if env is not None:
        bounds["validation_alias"] = env
    return Field(default=default, description=help, json_schema_extra={"unit": unit}, **bounds)


class Settings(BaseSettings):
    """The settings in force. A field is the environment variable `STREAMER_<NAME>` unless it names its own."""

    model_config = SettingsConfigDict(
        env_prefix="STREAMER_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    # general
    database_url: SecretStr | None = _setting(
        None, "PostgreSQL connection URL, as Prisma writes it", "URL", "DATABASE_URL"
    )
    redis_url: SecretStr | None = _setting(None, "Redis or Valkey connection URL", "URL", "REDIS_URL")
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8080, "port to listen on", ge=0, le=65535)
    public_url: str | None = _setting(
        None, "where clients reach this server, as https://streamer.example; sign-in links begin with it", "URL"
    )
    admin_port: int | None = _setting(
        None,
        "port of `/health` and `/metrics`; without it the main port serves them to this machine and to the admin token",
        ge=0,
        le=65535,
    )
    admin_token: SecretStr | None = _setting(
        None, "token that lets other machines read `/health` and `/metrics` on the main port", min_length=16
    )
    workers: int = _setting(1, "worker processes that share the port", "processes", ge=1, le=64)
    log_form: Literal["auto", "json", "people"] = _setting(
        "auto", "log format; `auto` is `people` on a terminal and `json` elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "lowest level that is logged")
    mqtt_url: SecretStr | None = _setting(
        None, "broker from which `streamer mqtt` receives, mqtt:// or mqtts://, with user and password", "URL"
    )
    otlp_url: str | None = _setting(
        None, "OpenTelemetry collector that receives one span per batch, such as http://collector:4318/v1/traces", "URL"
    )
    env: Literal["production", "development"] = _setting("production", "`development` allows `db reset` without --yes")

    # authentication
    jwt_secret: SecretStr | None = _setting(None, "shared secret for HS256 tokens", min_length=32)
    jwt_secret_previous: SecretStr | None = _setting(
        None, "previous shared secret, accepted too while tokens signed with it are in use", min_length=32
    )
    jwks_url: str | None = _setting(None, "JWKS of the token issuer", "URL")
    jwt_issuer: str | None = _setting(None, "required `iss` of a token")
    jwt_audience: str | None = _setting(None, "required member of a token's `aud`")
    jwt_parties: Names = _setting(
        (), "accepted `azp` of a token that has one: the origins of your web apps, separated by commas"
    )
    jwt_leeway: float = _setting(5.0, "accepted difference between the issuer's clock and this one", "s", ge=0, le=300)
    jwt_max_lifetime: float = _setting(
        366 * 86_400.0, "longest time from a token's `iat` (or now) to its `exp`; longer tokens are refused", "s", gt=0
    )
    backend_key: SecretStr | None = _setting(
        None, "bearer key of your backend, for sign-in links and erasures; unset: the endpoints are off", min_length=32
    )
    erase_database_url: SecretStr | None = _setting(
        None, "DATABASE_URL of the owner of the tables, for `POST /v1/erasures`; unset: the endpoint is off", "URL"
    )
    sign_in_life: float = _setting(
        30 * 86400.0, "lifetime of a token that a sign-in link is exchanged for", "s", ge=60, le=366 * 86400
    )
    watch_auth: Literal["required", "optional"] = _setting(
        "required", "`optional` lets customers watch without a token"
    )
    show_closed: Literal["yes", "no", "coarse"] = _setting(
        "yes",
        "`no` hides vendors that are closed from customers, `coarse` shows them on a grid of STREAMER_CLOSED_GRID",
    )
    closed_grid: float = _setting(
        1000.0,
        "grid of STREAMER_SHOW_CLOSED=coarse, and of public history then: rounded up to 1.1, 2.2, 4.4, 8.9 or 17.8 km",
        "m",
        gt=0,
        le=17_800,
    )
    show_offline: Literal["yes", "no"] = _setting(
        "yes", "`no` hides vendors from customers as soon as they are offline, instead of STREAMER_LEAVE_AFTER later"
    )
    history_access: Literal["owner", "public"] = _setting(
        "owner", "`public` lets everyone who may watch read a vendor's stored history"
    )
    change_poll_interval: float = _setting(
        1.0, "how often deleted users and vendors and changed cards are polled for", "s", gt=0, le=4
    )
    auth_timeout: float = _setting(5.0, "longest time a WebSocket may take to send its token", "s", gt=0, le=60)

    # storage
    pool_size: int = _setting(8, "PostgreSQL connections per process", "connections", ge=2, le=200)
    pool_timeout: float = _setting(10.0, "longest wait for a free PostgreSQL connection", "s", gt=0)
    statement_timeout: float = _setting(30.0, "longest time for one SQL statement", "s", ge=0.1, le=86_400)
    buffer_pings: int = _setting(
        500_000, "pings buffered for PostgreSQL; when full, sockets are not read", "pings", ge=1000
    )
    buffer_bytes: int = _setting(64 << 20, "memory for buffered pings", "bytes", ge=1 << 20)
    batch_pings: int = _setting(10_000, "largest COPY", "pings", ge=1, le=100_000)
    position_interval: float = _setting(2.0, "how often vendors.lat/long are updated", "s", gt=0, le=60)
    backup_dir: Path | None = _setting(
        None,
        "folder of `db backup`; the server exports the age of the newest backup and of its last restore test",
        "folder",
    )
    retention: int = _setting(90, "days of locations that `db prune` keeps", "days", ge=1, le=36_500)
    partitions_ahead: int = _setting(7, "daily partitions of locations created in advance", "days", ge=1, le=366)

    # vendors
    max_batch: int = _setting(500, "largest batch in one message", "pings", ge=1, le=10_000)
    future_tolerance: float = _setting(60.0, "a ping further in the future is rejected", "s", ge=0)
    max_age: float = _setting(366.0, "an older ping is rejected: the clock of its device is wrong", "days", gt=0)
    vendor_rate: float = _setting(
        200.0,
        "vendors below this rate go ahead of backlogs; faster ones are slowed down while the buffer is contended",
        "pings/s",
        gt=0,
    )
    vendor_burst: int = _setting(
        20_000, "pings of one vendor that may be buffered; up to this many are read at full speed", "pings", ge=1
    )
    vendor_messages: float = _setting(
        50_000.0,
        "message rate above which a vendor's connection is warned, paused and finally closed",
        "messages/s",
        gt=0,
    )
    vendor_changes: float = _setting(
        0.5,
        "rate of status changes of one vendor, after a burst of ten; faster ones are refused with a time to retry",
        "1/s",
        gt=0,
    )
    free_interval: float = _setting(
        0.0,
        "shortest time between live positions of a vendor without an active subscription, such as 3600; 0: no limit",
        "s",
        ge=0,
    )
    live_max_age: float = _setting(600.0, "a fix that is older on arrival goes into history only", "s", gt=0)
    offline_after: float = _setting(
        60.0, "a vendor stays online this long after its socket ended or its last HTTP ping", "s", gt=0
    )
    leave_after: float = _setting(600.0, "a vendor leaves the map this long after it went offline", "s", gt=0)

    # customers
    max_watches: int = _setting(32, "watches per connection", "watches", ge=1)
    max_radius: float = _setting(100_000.0, "largest circle", "m", gt=0)
    max_extent: float = _setting(200_000.0, "largest width and height of a box or polygon", "m", gt=0)
    max_vertices: int = _setting(200, "vertices of a polygon", "vertices", ge=3)
    max_listed: int = _setting(200, "vendors in a list", "vendors", ge=1)
    watch_messages: float = _setting(
        50.0,
        "message rate above which a customer's connection is warned, paused and finally closed",
        "messages/s",
        gt=0,
    )
    connection_cost: float = _setting(
        20.0, "CPU time that one connection's messages may take, in bursts five times as much", "ms/s", gt=0
    )
    user_cost: float = _setting(60.0, "CPU time that all messages and reads of one user may take", "ms/s", gt=0)
    address_cost: float = _setting(300.0, "CPU time that the messages and reads of one address may take", "ms/s", gt=0)
    heavy_cost: float = _setting(
        100.0, "CPU time that all heavy clients together may take, which use over a tenth of their share", "ms/s", gt=0
    )
    frame_interval: float = _setting(
        180.0, "longest time between two updates of a watch; the busier the process, the nearer it comes", "ms", ge=0
    )

    # other services
    feed: Literal["off", "on"] = _setting(
        "off", "`on` writes positions and statuses into a Redis Stream for other services"
    )
    feed_key: str = _setting("venta:feed", "key of the Redis Stream", min_length=1)
    feed_interval: float = _setting(1.0, "changes of one vendor are merged over this time", "s", gt=0, le=60)
    feed_length: int = _setting(100_000, "approximate length of the stream", "entries", ge=1)

    # alerts
    alert_key: SecretStr | None = _setting(
        None, "key that encrypts the signing secrets of alerts; unset: alerts are off", min_length=32
    )
    alert_key_previous: SecretStr | None = _setting(
        None, "previous key, so that secrets encrypted with it can still be used", min_length=32
    )
    alert_development_hosts: Names = _setting(
        (),
        "hosts that alerts may use by plain HTTP and in private networks, as localhost:9000, separated by commas; "
        "for development only",
    )
    alerts_per_user: int = _setting(100, "alerts of one user", "alerts", ge=1)
    alert_changes: float = _setting(
        0.5, "creations, changes and tests of a user's alerts, after a burst of 30", "1/s", gt=0
    )
    alert_extent: float = _setting(20_000.0, "largest width and height of an alert's area", "m", gt=0)
    alert_vendors: int = _setting(200, "vendors in an alert's list", "vendors", ge=1)
    alert_deliveries: int = _setting(128, "webhooks sent at once by a process", "requests", ge=1, le=10_000)
    alert_host_deliveries: int = _setting(16, "webhooks sent at once by a process to one host", "requests", ge=1)
    alert_timeout: float = _setting(10.0, "longest time a receiver may take to answer a webhook", "s", gt=0, le=60)
    alert_disable_after: float = _setting(
        5.0, "an alert whose every webhook failed for this long is disabled", "days", gt=0
    )
    alert_retention: int = _setting(30, "days of webhooks that `db prune` keeps", "days", ge=2, le=36_500)

    # the map
    tiles_url: str | None = _setting(
        None,
        "street tiles of the map, with {z}, {x} and {y}; without it the map shows land and place names only",
        "URL",
    )
    tiles_attribution: str = _setting("© OpenStreetMap contributors", "attribution of the street tiles")
    map_center: str = _setting("52.2297,21.0122", "where the map opens on a first visit", "lat,long")

    # connections
    max_message: int = _setting(64 << 10, "largest message from a client", "bytes", ge=1024)
    max_connections: int = _setting(
        50_000, "open WebSockets and event streams per process; further ones are refused", "connections", ge=1
    )
    user_connections: int = _setting(
        200, "open WebSockets and event streams of one user per process", "connections", ge=1
    )
    address_connections: int = _setting(
        2000,
        "open WebSockets and event streams of one address (IPv6: /64) per process; loopback is not limited",
        "connections",
        ge=1,
    )
    trusted_hops: int = _setting(
        0,
        "your reverse proxies in front of the server that append to X-Forwarded-For; only their entries are trusted",
        "proxies",
        ge=0,
        le=10,
    )
    origins: Names = _setting(
        (),
        "web origins that may open sockets and read answers, as https://app.example, separated by commas; empty: all",
    )
    handshake_timeout: float = _setting(
        10.0, "longest time for a new connection to send the head of its first request", "s", gt=0
    )
    request_timeout: float = _setting(
        60.0, "longest time for an HTTP request to send its body and read its answer", "s", gt=0
    )
    heartbeat: float = _setting(20.0, "interval of WebSocket pings", "s", gt=0)
    silence: float = _setting(60.0, "a client that sends nothing, not even a pong, for this long is closed", "s", gt=0)
    stall: float = _setting(30.0, "a client that reads nothing for this long is closed", "s", gt=0)
    max_bad_messages: int = _setting(20, "consecutive bad messages after which a socket is closed", "messages", ge=1)
    admission_rate: float = _setting(
        300.0, "connections admitted per second, and closed per second at a shutdown", "connections/s", gt=0
    )
    admission_wait: float = _setting(
        5.0, "longest wait for admission; a client that would wait longer is refused with a time to retry", "s", ge=0
    )
    stuck_after: float = _setting(
        10.0, "a process whose event loop is blocked for this long is ended; a worker is replaced", "s", gt=0
    )
    drain_timeout: float = _setting(10.0, "longest time for clients to leave at a graceful shutdown", "s", gt=0)

    @field_validator("tiles_url")
    @classmethod
    def _check_tiles(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not url.startswith(("http://", "https://")) or not all(part in url for part in ("{z}", "{x}", "{y}")):
            raise ValueError("must be an http:// or https:// URL with {z}, {x} and {y} in it")
        return url

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("must begin with https:// or http://")
        return None if url is None else url.rstrip("/")

    @field_validator("origins")
    @classmethod
    def _normalize_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        written = tuple(origin.lower().removesuffix("/") for origin in origins)
        if not all(ORIGIN.fullmatch(origin) for origin in written):
            raise ValueError("must be like https://app.example, without a path, or empty for all")
        return written

    @field_validator("map_center")
    @classmethod
    def _check_center(cls, text: str) -> str:
        coordinates(text)
        return text

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.heartbeat >= self.silence:
            raise ValueError(
                f"STREAMER_HEARTBEAT: {self.heartbeat:g} s must be less than STREAMER_SILENCE, {self.silence:g} s: "
                "a quiet client sends nothing but pongs"
            )
        return self


class Given(NamedTuple):
    """A setting's raw value and its origin: `command line`, `environment` or `.env`."""

    value: Any
    origin: str


def load(
    *, checks: Mapping[str, Check] | None = None, needed: Mapping[tuple[str, ...], str] | None = None, **overrides: Any
) -> Settings:
    """Returns the settings from the environment and `.env`, overridden by the command line.

    Args:
        checks: Further checks of given values, by setting.
        needed: Groups of settings of which one must be given, and what each group is for.

    Raises:
        SettingsError: Names every mistake at once, and no secret.
    """
    found = given(**overrides)
    mistakes: dict[str, str] = {}
    try:
        configured = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as invalid:
        mistakes |= {_name(error["loc"]): _explained(error) for error in invalid.errors()}
    for name, check in (checks or {}).items():
        if name in found and name not in mistakes:
            try:
                check(_plain(found[name].value))
            except (SettingsError, ValueError) as wrong:
                mistakes[name] = str(wrong) if variable(name) in str(wrong) else f"{variable(name)}: {wrong}"
    missing = [
        f"{' or '.join(map(variable, names))}: {what}"
        for names, what in (needed or {}).items()
        if not any(name in found for name in names)
    ]
    parts = []
    if missing:
        parts.append("these settings are required, in the environment or in .env:\n" + _lines(missing))
    if mistakes:
        parts.append("these settings cannot be used:\n" + _lines(mistakes.values()))
    if parts:
        raise SettingsError("\n".join(parts))
    return configured


def given(**overrides: Any) -> dict[str, Given]:
    """Returns the given value and origin of each setting that does not have its default."""
    found: dict[str, Given] = {}
    names = {variable(name): name for name in Settings.model_fields}
    for origin, source in _sources():
        for key, value in source().items():
            name = names.get(key, key)
            if name in Settings.model_fields:
                found[name] = Given(value, origin)
    found |= {name: Given(value, "command line") for name, value in overrides.items() if value is not None}
    return found


def unknown_variables() -> list[str]:
    """Returns variables with the prefix of settings that are no settings, such as misspelt ones."""
    known = set(map(variable, Settings.model_fields))
    prefix = Settings.model_config["env_prefix"]
    names = {name.upper() for _, source in _sources() for name in source.env_vars}
    return sorted(name for name in names - known if name.startswith(prefix))


def variable(name: str) -> str:
    """Returns the environment variable of a setting."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"STREAMER_{name.upper()}"


def unit(name: str) -> str:
    """Returns the unit of a setting; empty when it has none."""
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def secret(name: str) -> bool:
    """Returns whether a setting's value must not be shown."""
    return "SecretStr" in str(Settings.model_fields[name].annotation)


def number(value: Any) -> str:
    """Formats a limit or default for people, without `.0` and exponent."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _sources() -> list[tuple[str, EnvSettingsSource]]:
    try:
        return [(".env", DotEnvSettingsSource(Settings)), ("environment", EnvSettingsSource(Settings))]
    except (OSError, UnicodeDecodeError) as unreadable:
        raise SettingsError(f"cannot read .env: {unreadable}") from None


def _name(location: tuple[int | str, ...]) -> str:
    """The setting that a validation error is about; empty for an error about several."""
    first = str(location[0]) if location else ""
    return next((name for name in Settings.model_fields if first in (name, variable(name))), first)


def _explained(error: Any) -> str:
    """Describes a validation error, with the wrong value unless it is a secret."""
    name = _name(error["loc"])
    if not name:
        return str(error["ctx"]["error"])
    limits = error.get("ctx", {})
    counted = f" {unit(name)}" if unit(name) else ""
    wanted = {
        "greater_than": "more than {gt}" + counted,
        "greater_than_equal": "at least {ge}" + counted,
        "less_than": "less than {lt}" + counted,
        "less_than_equal": "at most {le}" + counted,
        "literal_error": "{expected}",
        "too_short": "at least {min_length} bytes long, not {actual_length}",
        "int_parsing": "a whole number" + (f" ({unit(name)})" if unit(name) else ""),
        "int_from_float": "a whole number",
        "float_parsing": "a number" + (f" ({unit(name)})" if unit(name) else ""),
        "finite_number": "a finite number",
    }.get(error["type"])
    if wanted is None:
        said = error["msg"].removeprefix("Value error, ")
    else:
        said = "must be " + wanted.format(**{key: number(value) for key, value in limits.items()})
    shown = "" if secret(name) or error["type"] == "too_short" else f", not {error['input']!r}"
    return f"{variable(name)}: {said}{shown}"


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _lines(items: Any) -> str:
    return "\n".join(f"  {item}" for item in items)
