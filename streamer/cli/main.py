"""The `streamer` command. `streamer --help` is the reference."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from streamer import __version__
from streamer.cli import client, config, conformance, db, dev, doctor, link, mqtt, redis, serve
from streamer.cli.process import report
from streamer.errors import SettingsError, StreamerError

cli = typer.Typer(
    name="streamer",
    help="Live-location server: vendors send pings, PostgreSQL stores them, customers watch areas in real time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli.command()(serve.serve)
cli.command()(mqtt.mqtt)
cli.command()(dev.dev)
cli.command()(doctor.doctor)
cli.command()(config.config)
cli.command()(dev.token)
cli.command()(link.link)
cli.command()(client.watch)
cli.command()(client.ping)
cli.command()(conformance.conformance)
cli.add_typer(db.db)
cli.add_typer(redis.redis)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamer {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command. Exit status: 0 done, 1 failed, 2 wrong use or settings."""
    try:
        cli()
    except SettingsError as wrong:
        sys.exit(report(wrong, 2))
    except StreamerError as failed:
        sys.exit(report(failed, 1))
