"""`streamer dev` and `streamer token`: a development server, and tokens for it."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamer.cli import config
from streamer.cli.config import Host, Port
from streamer.cli.process import Steps, interrupts, run, tune_collector
from streamer.dev.development import DevServer, dev_server
from streamer.dev.folder import DATA, SERVICES
from streamer.operations import logs
from streamer.settings import Settings
from streamer.storage import dsn


def dev(
    host: Host = None,
    port: Port = None,
    data: Annotated[Path, typer.Option(help="Folder for the embedded PostgreSQL and Valkey.")] = DATA,
    simulate: Annotated[int, typer.Option(help="Number of simulated vendors.", min=0, max=10_000)] = 0,
) -> None:
    """Run a development server, with an embedded PostgreSQL and Valkey unless DATABASE_URL and REDIS_URL are set."""
    configured = config.load(host=host, port=port)
    config.warn_of_unknown_variables()
    logs.configure(form=configured.log_form, level=configured.log_level)
    run(_dev(configured, data, simulate))


async def _dev(configured: Settings, data: Path, simulated: int) -> None:
    console = Console(stderr=True, soft_wrap=True)
    async with interrupts() as interrupt, contextlib.AsyncExitStack() as stack:
        with Steps(console) as steps:
            server = await stack.enter_async_context(dev_server(configured, data, simulated, steps))
        tune_collector()
        _print_urls(console, server, data, simulated)
        await interrupt.wait()
        console.print("stopping")


def _print_urls(console: Console, server: DevServer, data: Path, simulated: int) -> None:
    """Prints the URLs and what to try next."""

    def line(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    url = server.http
    streamer = Path(sys.argv[0])
    at = "" if data == DATA else f" --data {shlex.quote(str(data))}"
    line(f"serving on {url}" + (f", {simulated} simulated vendors moving" if simulated else ""), "bold")
    line(f"  PostgreSQL  {dsn.parse_url(server.database).masked()}")
    if server.elsewhere is not None:
        line(f"              its data is in {server.elsewhere}, which the user it runs as can enter")
    line(f"  Redis       {config.masked_redis(server.redis)}")
    line(f"  all URLs with their passwords: {data / SERVICES}")
    line()
    line("try next", "bold")
    line("  the live map, and the page that turns a phone's browser into a vendor:")
    line(f"    {url}/    {url}/vendor")
    line("  list nearby vendors:")
    line(f"    curl '{url}/v1/vendors/nearby?lat=52.2297&long=21.0122&radius=2000'")
    line("  watch them move:")
    line(f"    {streamer} watch 52.2297,21.0122,2000{at}")
    line("  send a ping as the test vendor:")
    line(f"    {streamer} ping 52.2297,21.0122{at}")
    line("Ctrl-C stops everything")
