"""The `streamer` command. `streamer --help` is the reference."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from streamer import __version__
from streamer.cli.process import reported

MODULES = {
    **{name: name for name in ("serve", "mqtt", "dev", "doctor", "config", "token", "link")},
    **{"watch": "client", "ping": "client", "conformance": "conformance", "db": "db", "redis": "redis"},
}
"""The module of each command, in the order of the help."""


class Commands(TyperGroup):
    """Imports only the module of the requested command: the others would take most of a short command's time."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in MODULES:
            for name in MODULES:  # candidates for "did you mean"
                self.get_command(ctx, name)
        elif cmd_name not in self.commands:
            found = getattr(import_module(f"streamer.cli.{MODULES[cmd_name]}"), cmd_name)
            if isinstance(found, typer.Typer):
                self.commands[cmd_name] = typer.main.get_group(found)
            else:
                alone = typer.Typer(add_completion=False)
                alone.command(cmd_name)(found)
                self.commands[cmd_name] = typer.main.get_command(alone)
        return self.commands.get(cmd_name)


cli = typer.Typer(
    name="streamer",
    cls=Commands,
    help="Live-location server: vendors send pings, PostgreSQL stores them, customers watch areas in real time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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
    sys.exit(reported(cli))
