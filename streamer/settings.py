"""Every setting: name, default, unit, help. Read once from the environment (and `.env`), passed on by value."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from streamer.errors import SettingsError


def _setting(default: Any, help: str, unit: str = "", env: str | None = None, **bounds: Any) -> Any:
    if env is not None:
        bounds["validation_alias"] = env
    return Field(default=default, description=help, json_schema_extra={"unit": unit}, **bounds)


class Settings(BaseSettings):
    """What is in force; each field is the environment variable `STREAMER_<NAME>` unless its own name is given."""

    model_config = SettingsConfigDict(
        env_prefix="STREAMER_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    # where things are
    database_url: SecretStr | None = _setting(None, "PostgreSQL, as Prisma writes it", "URL", "DATABASE_URL")
    redis_url: SecretStr | None = _setting(None, "Redis or Valkey", "URL", "REDIS_URL")
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8080, "port to listen on", ge=0, le=65535)
    env: Literal["production", "development"] = _setting("production", "`development` allows `db reset` without --yes")

    # who may speak
    jwt_secret: SecretStr | None = _setting(None, "HS256 secret for tokens; at least 32 bytes", min_length=32)
    jwks_url: str | None = _setting(None, "where the token issuer publishes its keys", "URL")
    watch_auth: Literal["required", "optional"] = _setting(
        "required", "`optional` lets customers watch without a token"
    )
    history_access: Literal["owner", "public"] = _setting(
        "owner", "`public` lets whoever may watch read a vendor's stored history"
    )
    auth_timeout: float = _setting(5.0, "how long a socket may stay without a token", "s", gt=0, le=60)

    # storage
    pool_size: int = _setting(8, "PostgreSQL connections of one process", ge=2, le=200)
    pool_timeout: float = _setting(10.0, "longest wait for a free connection", "s", gt=0)
    statement_timeout: float = _setting(30.0, "a statement that takes longer is given up", "s", gt=0)
    buffer_pings: int = _setting(
        200_000, "pings that may wait for PostgreSQL; then sockets are not read", "pings", ge=1000
    )
    buffer_bytes: int = _setting(64 << 20, "bytes that waiting pings may take", "bytes", ge=1 << 20)
    batch_pings: int = _setting(10_000, "most pings in one COPY", "pings", ge=1, le=100_000)
    position_interval: float = _setting(2.0, "how often vendors.lat/long are brought up to date", "s", gt=0, le=60)
    partitions_ahead: int = _setting(7, "daily partitions of locations kept ready", "days", ge=1, le=366)

    # vendors
    max_batch: int = _setting(500, "most pings in one message", "pings", ge=1, le=10_000)
    future_tolerance: float = _setting(60.0, "a ping further in the future is rejected", "s", ge=0)
    live_max_age: float = _setting(600.0, "an older fix is history only", "s", gt=0)
    offline_after: float = _setting(60.0, "online this long after the socket or last HTTP ping", "s", gt=0)
    leave_after: float = _setting(600.0, "gone from the map this long after going offline", "s", gt=0)

    # watchers
    max_watches: int = _setting(32, "watches of one connection", "watches", ge=1)
    max_radius: float = _setting(100_000.0, "largest circle", "m", gt=0)
    max_extent: float = _setting(200_000.0, "largest box or polygon, in either direction", "m", gt=0)
    max_vertices: int = _setting(200, "most corners of a polygon", "vertices", ge=3)
    max_listed: int = _setting(200, "most vendors in a list", "vendors", ge=1)
    frame_cost: float = _setting(0.65, "merging: wait this long per frame of the last tick", "ms", ge=0)
    frame_interval: float = _setting(170.0, "merging: but never longer than this", "ms", ge=0)

    # sockets
    max_message: int = _setting(64 << 10, "largest message from a client", "bytes", ge=1024)
    heartbeat: float = _setting(20.0, "how often a WebSocket ping goes out", "s", gt=0)
    silence: float = _setting(60.0, "a client not heard for so long is closed", "s", gt=0)
    stall: float = _setting(30.0, "a client that takes nothing for so long is closed", "s", gt=0)
    max_bad_messages: int = _setting(20, "bad messages in a row after which a socket is closed", "messages", ge=1)
    drain_timeout: float = _setting(10.0, "longest orderly stop", "s", gt=0)


def load(**overrides: Any) -> Settings:
    """Settings from the environment, overridden by what the command line gave; SettingsError names every mistake."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as invalid:
        lines = [f"  {variable(e['loc'])}: {e['msg']}{_given(e['loc'], e['input'])}" for e in invalid.errors()]
        raise SettingsError("these settings can't be used:\n" + "\n".join(lines)) from None


def variable(location: tuple[int | str, ...]) -> str:
    """The environment variable that a validation error's location stands for."""
    name = ".".join(str(part) for part in location)
    return name if name.isupper() else f"STREAMER_{name.upper()}"


def _given(location: tuple[int | str, ...], value: Any) -> str:
    """The value that was wrong, unless it is a secret."""
    name = variable(location)
    return "" if "SECRET" in name or name.endswith("_URL") else f", not {value!r}"
