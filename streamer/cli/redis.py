"""`streamer redis`: commands for operators of Redis."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer import settings
from streamer.broker.redis_acl import acl_rules

redis = typer.Typer(name="redis", help="Prepare Redis for the server.", no_args_is_help=True)


@redis.command()
def acl(
    user: Annotated[str, typer.Option(help="The name of the Redis user.")] = "streamer",
    setuser: Annotated[
        bool, typer.Option(help="Print an ACL SETUSER command instead of a line for users.acl.")
    ] = False,
) -> None:
    """Print the Redis user with the least rights that the server needs; put its password in place of PASSWORD."""
    found = settings.load()
    rules = acl_rules(found.feed_key if found.feed == "on" else None)
    typer.echo(f"{'ACL SETUSER' if setuser else 'user'} {user} {'reset ' if setuser else ''}on >PASSWORD {rules}")
