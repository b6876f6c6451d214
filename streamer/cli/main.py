"""The `streamer` command. `streamer --help` is the reference."""

from __future__ import annotations

import sys

import typer

from streamer.cli import config, db, dev, link, redis, serve
from streamer.cli.process import report
from streamer.errors import SettingsError, StreamerError

cli = typer.Typer(
    name="streamer",
    help="Venta's live-location server: vendors report, PostgreSQL remembers, customers nearby see them move.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cli.command()(serve.serve)
cli.command()(dev.dev)
cli.command()(config.config)
cli.command()(dev.token)
cli.command()(link.link)
cli.add_typer(db.db)
cli.add_typer(redis.redis)


def main() -> None:
    """The `streamer` command. Exit status: 0 done, 1 failed, 2 wrong use or settings."""
    try:
        cli()
    except SettingsError as wrong:
        sys.exit(report(wrong, 2))
    except StreamerError as failed:
        sys.exit(report(failed, 1))
