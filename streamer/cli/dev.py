"""`streamer dev` and `streamer token`: a server for development, and sign-in tokens for it."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamer import settings
from streamer.accounts.tokens import make_token, rules_of
from streamer.cli import config
from streamer.cli.options import Host, Port
from streamer.cli.process import Steps, interrupts, run, spare_the_collector
from streamer.dev.development import SECRET, SERVICES, Developed, developing
from streamer.errors import SettingsError
from streamer.operations import logs
from streamer.settings import Settings
from streamer.storage import dsn

DATA = Path(".venta")


def dev(
    host: Host = None,
    port: Port = None,
    data: Annotated[Path, typer.Option(help="Folder for the PostgreSQL and Valkey of this server.")] = DATA,
    simulate: Annotated[int, typer.Option(help="So many simulated vendors move about.", min=0, max=10_000)] = 0,
) -> None:
    """Serve for development: with a PostgreSQL and a Valkey of its own, unless DATABASE_URL and REDIS_URL are set."""
    configured = config.load(host=host, port=port)
    config.warn_of_unknown_variables()
    logs.configure(form=configured.log_form, level=configured.log_level)
    run(_dev(configured, data, simulate))


def token(
    clerk_id: Annotated[str, typer.Argument(help="users.clerkId: who the token speaks for.")],
    ttl: Annotated[float, typer.Option(help="Seconds until it expires.", min=1)] = 3600,
    data: Annotated[Path, typer.Option(help="Where `streamer dev` keeps its secret.")] = DATA,
) -> None:
    """Print an HS256 token for development and load tests, signed with STREAMER_JWT_SECRET or dev's own secret."""
    configured = settings.load()
    secret, claims = configured.jwt_secret, rules_of(configured).claims
    if secret is not None:
        typer.echo(make_token(secret.get_secret_value(), clerk_id, ttl, claims=claims))
        return
    try:
        typer.echo(make_token((data / SECRET).read_text().strip(), clerk_id, ttl, claims=claims))
    except OSError:
        raise SettingsError(
            "there is no secret to sign with: set STREAMER_JWT_SECRET, "
            f"or run `streamer dev`, which keeps one in {data / SECRET}"
        ) from None


async def _dev(configured: Settings, data: Path, simulated: int) -> None:
    console = Console(stderr=True, soft_wrap=True)
    async with interrupts() as interrupt, contextlib.AsyncExitStack() as stack:
        with Steps(console) as steps:
            developed = await stack.enter_async_context(developing(configured, data, simulated, steps))
        spare_the_collector()
        _greet(console, developed, data, simulated)
        await interrupt.wait()
        console.print("stopping")


def _greet(console: Console, developed: Developed, data: Path, simulated: int) -> None:
    """Where everything is, and what to try next."""

    def line(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    url = developed.http
    streamer = Path(sys.argv[0])
    line(f"serving on {url}" + (f", {simulated} simulated vendors moving" if simulated else ""), "bold")
    line(f"  PostgreSQL  {dsn.parse_url(developed.database).masked()}")
    if developed.elsewhere is not None:
        line(f"              its data is in {developed.elsewhere}, where the user it runs as can go")
    line(f"  Redis       {config.masked_redis(developed.redis)}")
    line(f"  all URLs with their passwords: {data / SERVICES}")
    line()
    line("try next", "bold")
    line("  see them move: the live map, and the page that makes a phone's browser a vendor:")
    line(f"    {url}/    {url}/vendor")
    line("  who is near just now:")
    line(f"    curl '{url}/v1/vendors/nearby?lat=52.2297&long=21.0122&radius=2000'")
    line("  watch them (README.md, For the customer app; saved as customer.py):")
    line(f"    {streamer.with_name('python')} customer.py {url}")
    line("  be a vendor yourself (README.md, For the vendor app; saved as vendor.py):")
    at = "" if data == DATA else f" --data {shlex.quote(str(data))}"
    line(f"    {streamer.with_name('python')} vendor.py {url} $({streamer} token clerk_test_user{at})")
    line("Ctrl-C stops it all")
