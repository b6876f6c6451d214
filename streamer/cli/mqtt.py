"""`streamer mqtt`: a process that stores what OwnTracks apps publish to an MQTT broker."""

from __future__ import annotations

import faulthandler
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from streamer import lifecycle, settings
from streamer.cli import config
from streamer.cli.process import run, until_stopped
from streamer.dev.folder import DATA, read_services
from streamer.operations import logs
from streamer.transport.mqtt_url import parse_broker

NEEDED: Mapping[tuple[str, ...], str] = {
    ("database_url",): "where to store",
    ("redis_url",): "the Redis or Valkey that connects the processes",
    ("mqtt_url",): "the broker, also by --broker",
}


def mqtt(
    broker: Annotated[
        str | None,
        typer.Option(help="URL of the broker, mqtt://USER:PASSWORD@HOST:1883 or mqtts; default: STREAMER_MQTT_URL."),
    ] = None,
    client_id: Annotated[
        str, typer.Option(help="Name of the session at the broker; each bridge needs its own.")
    ] = "venta-streamer",
    data: Annotated[Path, typer.Option(help="Folder of `streamer dev`, for its services.")] = DATA,
) -> None:
    """Store what OwnTracks apps publish to an MQTT broker, and show it live; uses the database and Redis of `serve`."""
    given = settings.load()
    services = {} if given.database_url or given.redis_url else read_services(data)
    configured = config.load(
        NEEDED,
        mqtt_url=None if broker is None else SecretStr(broker),
        database_url=services.get("database"),
        redis_url=services.get("redis"),
    )
    config.warn_of_unknown_variables()
    logs.configure(form=configured.log_form, level=configured.log_level)
    faulthandler.enable()
    assert configured.mqtt_url is not None
    where = parse_broker(configured.mqtt_url.get_secret_value())
    bridging = lifecycle.bridging(configured, where, client_id)
    run(until_stopped(configured, bridging, lambda _: f"bridging from the MQTT broker {where.where}"))
