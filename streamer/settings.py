"""Every setting: name, default, unit, help. Read once from the environment (and `.env`), passed on by value."""

from __future__ import annotations

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
"""Names with commas or spaces between."""

Check = Callable[[str], object]
"""Raises SettingsError or ValueError for what can't be used; the message must not quote a secret."""


def coordinates(text: str) -> tuple[float, float]:
    """Latitude and longitude of `lat,long`; ValueError names what is wrong."""
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
    """What is in force; each field is the environment variable `STREAMER_<NAME>` unless its own name is given."""

    model_config = SettingsConfigDict(
        env_prefix="STREAMER_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    # where things are
    database_url: SecretStr | None = _setting(None, "PostgreSQL, as Prisma writes it", "URL", "DATABASE_URL")
    redis_url: SecretStr | None = _setting(None, "Redis or Valkey", "URL", "REDIS_URL")
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8080, "port to listen on", ge=0, le=65535)
    public_url: str | None = _setting(
        None, "where clients reach this server, as https://streamer.example; sign-in links begin with it", "URL"
    )
    workers: int = _setting(1, "processes that serve on the one port", "processes", ge=1, le=64)
    log_form: Literal["auto", "json", "people"] = _setting("auto", "`auto`: for people on a terminal, else `json`")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "what is logged: this and what is worse")
    otlp_url: str | None = _setting(
        None, "OpenTelemetry collector that gets a span for each batch, as http://collector:4318/v1/traces", "URL"
    )
    env: Literal["production", "development"] = _setting("production", "`development` allows `db reset` without --yes")

    # who may speak
    jwt_secret: SecretStr | None = _setting(None, "HS256 secret for tokens", min_length=32)
    jwt_secret_previous: SecretStr | None = _setting(
        None, "the secret before it, taken too while tokens signed with it are about", min_length=32
    )
    jwks_url: str | None = _setting(None, "where the token issuer publishes its keys", "URL")
    jwt_issuer: str | None = _setting(None, "what a token's `iss` must be")
    jwt_audience: str | None = _setting(None, "what must be in a token's `aud`")
    jwt_parties: Names = _setting(
        (), "what a token's `azp` may be, if it has one: the origins of your web apps, with commas between"
    )
    jwt_leeway: float = _setting(5.0, "how far the issuer's clock may be off", "s", ge=0, le=300)
    backend_key: SecretStr | None = _setting(
        None, "bearer key with which your backend requests sign-in links; unset: the endpoint is off", min_length=32
    )
    sign_in_life: float = _setting(
        30 * 86400.0, "lifetime of a token that a sign-in link is exchanged for", "s", ge=60, le=366 * 86400
    )
    watch_auth: Literal["required", "optional"] = _setting(
        "required", "`optional` lets customers watch without a token"
    )
    history_access: Literal["owner", "public"] = _setting(
        "owner", "`public` lets whoever may watch read a vendor's stored history"
    )
    census_interval: float = _setting(
        1.0, "how often deleted users and vendors, and changed cards, are looked for", "s", gt=0, le=4
    )
    auth_timeout: float = _setting(5.0, "how long a socket may stay without a token", "s", gt=0, le=60)

    # storage
    pool_size: int = _setting(8, "PostgreSQL connections of one process", "connections", ge=2, le=200)
    pool_timeout: float = _setting(10.0, "longest wait for a free connection", "s", gt=0)
    statement_timeout: float = _setting(30.0, "a statement that takes longer is given up", "s", gt=0)
    buffer_pings: int = _setting(
        500_000, "pings that may wait for PostgreSQL; then sockets are not read", "pings", ge=1000
    )
    buffer_bytes: int = _setting(64 << 20, "bytes that waiting pings may take", "bytes", ge=1 << 20)
    batch_pings: int = _setting(10_000, "most pings in one COPY", "pings", ge=1, le=100_000)
    position_interval: float = _setting(2.0, "how often vendors.lat/long are brought up to date", "s", gt=0, le=60)
    backup_dir: Path | None = _setting(
        None, "folder of `db backup`; the server exports how old the newest backup is, and its proof", "folder"
    )
    partitions_ahead: int = _setting(7, "daily partitions of locations kept ready", "days", ge=1, le=366)

    # vendors
    max_batch: int = _setting(500, "most pings in one message", "pings", ge=1, le=10_000)
    future_tolerance: float = _setting(60.0, "a ping further in the future is rejected", "s", ge=0)
    max_age: float = _setting(366.0, "an older ping is rejected: the clock of its device is wrong", "days", gt=0)
    vendor_rate: float = _setting(
        200.0,
        "a vendor within it goes ahead of others' backlogs; above it is read no faster while the buffer is contended",
        "pings/s",
        gt=0,
    )
    vendor_burst: int = _setting(
        20_000, "so many of a vendor are taken at full speed; more of it never wait for PostgreSQL", "pings", ge=1
    )
    vendor_messages: float = _setting(
        50_000.0, "a vendor's connection that sends more is warned, paused, at last closed", "messages/s", gt=0
    )
    vendor_changes: float = _setting(
        0.5, "a vendor that opens and closes more often, beyond ten times at once, has to say it again", "1/s", gt=0
    )
    free_interval: float = _setting(
        0.0,
        "a vendor whose user has no active subscription goes live no more often than this, as 3600; 0: as any other",
        "s",
        ge=0,
    )
    live_max_age: float = _setting(600.0, "an older fix is history only", "s", gt=0)
    offline_after: float = _setting(60.0, "online this long after the socket or last HTTP ping", "s", gt=0)
    leave_after: float = _setting(600.0, "gone from the map this long after going offline", "s", gt=0)

    # watchers
    max_watches: int = _setting(32, "watches of one connection", "watches", ge=1)
    max_radius: float = _setting(100_000.0, "largest circle", "m", gt=0)
    max_extent: float = _setting(200_000.0, "largest box or polygon, in either direction", "m", gt=0)
    max_vertices: int = _setting(200, "most corners of a polygon", "vertices", ge=3)
    max_listed: int = _setting(200, "most vendors in a list", "vendors", ge=1)
    watch_messages: float = _setting(
        50.0, "a customer's connection that sends more is warned, paused, at last closed", "messages/s", gt=0
    )
    frame_cost: float = _setting(
        0.87, "merging: wait this long per frame of the last tick, beyond the first few", "ms", ge=0
    )
    frame_interval: float = _setting(180.0, "merging: but never longer than this", "ms", ge=0)

    # other services
    feed: Literal["off", "on"] = _setting(
        "off", "`on` writes positions and statuses into a Redis Stream for other services to follow"
    )
    feed_key: str = _setting("venta:feed", "the stream's key", min_length=1)
    feed_interval: float = _setting(1.0, "a vendor's changes are merged over this time", "s", gt=0, le=60)
    feed_length: int = _setting(100_000, "entries the stream keeps, about", "entries", ge=1)

    # the map
    tiles_url: str | None = _setting(
        None,
        "street tiles for the map: {z}, {x}, {y} stand for the tile; without it the map has land and names only",
        "URL",
    )
    tiles_attribution: str = _setting("© OpenStreetMap contributors", "whom the map names as the street tiles' makers")
    map_center: str = _setting(
        "52.2297,21.0122", "where the map opens, if the visitor has not been elsewhere", "lat,long"
    )

    # sockets
    max_message: int = _setting(64 << 10, "largest message from a client", "bytes", ge=1024)
    max_connections: int = _setting(
        50_000, "open WebSockets of one process; more are refused until some end", "connections", ge=1
    )
    user_connections: int = _setting(200, "open WebSockets of one user at one process", "connections", ge=1)
    address_connections: int = _setting(
        2000,
        "open WebSockets from one address (IPv6: /64) at one process; this machine's own are not counted",
        "connections",
        ge=1,
    )
    trusted_hops: int = _setting(
        0,
        "proxies of yours in front that add to X-Forwarded-For; only their entries are believed",
        "proxies",
        ge=0,
        le=10,
    )
    origins: Names = _setting(
        (),
        "whose pages may open sockets and read answers, as https://app.example, with commas between; empty: everyone's",
    )
    handshake_timeout: float = _setting(
        10.0, "a connection that has not sent its first request's head in this time is cut", "s", gt=0
    )
    request_timeout: float = _setting(
        60.0, "an HTTP request whose body has not come, or whose answer is not taken, in this time is cut", "s", gt=0
    )
    heartbeat: float = _setting(20.0, "how often a WebSocket ping goes out", "s", gt=0)
    silence: float = _setting(60.0, "a client not heard for so long is closed", "s", gt=0)
    stall: float = _setting(30.0, "a client that takes nothing for so long is closed", "s", gt=0)
    max_bad_messages: int = _setting(20, "bad messages in a row after which a socket is closed", "messages", ge=1)
    admission_rate: float = _setting(
        300.0, "clients let in, and at a stop sent away, so many a second", "connections/s", gt=0
    )
    admission_wait: float = _setting(
        5.0, "so long one waits to be let in; who would wait longer is told to come again", "s", ge=0
    )
    stuck_after: float = _setting(
        10.0, "a process whose event loop has not turned for so long is ended, and a worker replaced", "s", gt=0
    )
    drain_timeout: float = _setting(10.0, "longest time for clients to leave in at an orderly stop", "s", gt=0)

    @field_validator("tiles_url")
    @classmethod
    def _a_tile(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not url.startswith(("http://", "https://")) or not all(part in url for part in ("{z}", "{x}", "{y}")):
            raise ValueError("must be an http:// or https:// URL with {z}, {x} and {y} in it")
        return url

    @field_validator("public_url")
    @classmethod
    def _an_origin(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("must begin with https:// or http://")
        return None if url is None else url.rstrip("/")

    @field_validator("map_center")
    @classmethod
    def _a_place(cls, text: str) -> str:
        coordinates(text)
        return text

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.heartbeat >= self.silence:
            raise ValueError(
                f"STREAMER_HEARTBEAT: {self.heartbeat:g} s must be less than STREAMER_SILENCE, {self.silence:g} s: "
                "a quiet client is heard by its answers to pings"
            )
        return self


class Given(NamedTuple):
    """A setting's value as it was given, and by what: `command line`, `environment` or `.env`."""

    value: Any
    origin: str


def load(
    *, checks: Mapping[str, Check] | None = None, needed: Mapping[tuple[str, ...], str] | None = None, **overrides: Any
) -> Settings:
    """Settings from the environment and `.env`, overridden by what the command line gave.

    `checks` look closer at given values, by setting; of each key of `needed` one setting must be given, and the value
    says what for. SettingsError names every mistake at once, and no secret.
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
        parts.append("these settings are needed, in the environment or in .env:\n" + _lines(missing))
    if mistakes:
        parts.append("these settings can't be used:\n" + _lines(mistakes.values()))
    if parts:
        raise SettingsError("\n".join(parts))
    return configured


def given(**overrides: Any) -> dict[str, Given]:
    """What was given, by setting, and by what; what is not in it has its default."""
    found: dict[str, Given] = {}
    names = {variable(name): name for name in Settings.model_fields}
    for origin, source in _sources():
        for key, value in source().items():
            name = names.get(key, key)
            if name in Settings.model_fields:
                found[name] = Given(value, origin)
    found |= {name: Given(value, "command line") for name, value in overrides.items() if value is not None}
    return found


def strangers() -> list[str]:
    """Variables that begin like settings but are none, as a misspelt one is."""
    known = set(map(variable, Settings.model_fields))
    prefix = Settings.model_config["env_prefix"]
    names = {name.upper() for _, source in _sources() for name in source.env_vars}
    return sorted(name for name in names - known if name.startswith(prefix))


def variable(name: str) -> str:
    """The environment variable of a setting."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"STREAMER_{name.upper()}"


def unit(name: str) -> str:
    """What a setting is counted in; empty where there is nothing to count."""
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def secret(name: str) -> bool:
    """Whether a setting's value is not for showing."""
    return "SecretStr" in str(Settings.model_fields[name].annotation)


def number(value: Any) -> str:
    """A limit or default for people: no `.0`, no exponent; what is no number as it is."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _sources() -> list[tuple[str, EnvSettingsSource]]:
    try:
        return [(".env", DotEnvSettingsSource(Settings)), ("environment", EnvSettingsSource(Settings))]
    except (OSError, UnicodeDecodeError) as unreadable:
        raise SettingsError(f".env can't be read: {unreadable}") from None


def _name(location: tuple[int | str, ...]) -> str:
    """The setting that a validation error is about; empty for one about several."""
    first = str(location[0]) if location else ""
    return next((name for name in Settings.model_fields if first in (name, variable(name))), first)


def _explained(error: Any) -> str:
    """A validation error in words; the value that was wrong is in it unless it is a secret."""
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
