"""How a command is carried out: on a ready server, its report printed, its errors told in one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import typer
from rich.console import Console

from loadtest.cli.progress import Bar
from loadtest.clients.target import Target
from loadtest.engine.event_loop import first_cause, raise_file_limit, run_loop
from loadtest.errors import LoadtestError, RunFailed, WrongUse
from loadtest.measure.readiness import unready
from loadtest.reports.table import write
from venta_client.errors import ClientError


async def attended(target: Target, run: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """A run on a server that was ready before and still is after it; otherwise its report is not `ok` and says why."""
    try:
        if (cause := await unready(target)) is not None:
            raise RunFailed(f"the server is not ready ({cause}); look into its log, mend it and start it again")
    except BaseException:
        run.close()
        raise
    report = await run
    cause = await unready(target)
    return report | {"ready": cause or True, "ok": report["ok"] and cause is None}


def perform(run: Callable[[Bar], Coroutine[Any, Any, dict[str, Any]]], json: bool) -> None:
    """Carry a run out, print its report, and exit as it went."""

    async def with_bar() -> dict[str, Any]:
        with Bar(quiet=json) as bar:
            return await run(bar)

    report = told(with_bar())
    write(report, json, Console(file=sys.stdout))
    if not report["ok"]:
        typer.echo("Error: not everything is as it must be; see the report", err=True)
        raise typer.Exit(1)


def told(main: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run to the end; an error of ours becomes one line and exit code 1, wrong use exit code 2."""
    raise_file_limit()
    try:
        return run_loop(main)
    except BaseException as failure:
        error = first_cause(failure)
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            typer.echo("Error: stopped by Ctrl-C before there was a report", err=True)
            raise typer.Exit(130) from None
        if isinstance(error, WrongUse):
            raise typer.BadParameter(str(error)) from None
        if isinstance(error, LoadtestError | ClientError):
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from None
        raise
