"""`streamer conformance`: tests a client of the protocol from outside."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from streamer.cli.process import run
from streamer.dev.conformance import script
from streamer.errors import SettingsError


def conformance(
    command: Annotated[
        list[str], typer.Argument(help="The client's test program; see docs/conformance.md.", metavar="-- COMMAND...")
    ],
    only: Annotated[list[str] | None, typer.Option("--case", help="Run only cases with this in their name.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave out cases with this in their name.")] = None,
    client: Annotated[str | None, typer.Option(help="Run only the cases of `vendor` or of `customer`.")] = None,
    within: Annotated[float, typer.Option(help="Maximum seconds of a step.", min=1)] = script.WITHIN,
    jobs: Annotated[int, typer.Option(help="Number of cases run at the same time.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Test a client: act as the server, simulate network faults, print a verdict per case; status 1 if any failed."""
    cases = [
        case
        for case in script.load()
        if (client is None or case.client == client)
        and (not only or any(part in case.name for part in only))
        and not any(part in case.name for part in skip or ())
    ]
    if not cases:
        raise SettingsError("no case has that name: see `wire.json` in " + str(script.tables()))
    if os.sep in command[0] and not Path(command[0]).exists():
        raise SettingsError(f"there is no program {command[0]}")
    run(_judge(command, cases, within, jobs))


async def _judge(command: list[str], cases: list[script.Case], within: float, jobs: int) -> None:
    slots = asyncio.Semaphore(jobs)

    async def judged(case: script.Case) -> script.Verdict:
        async with slots:
            return await script.judge(command, case, within)

    failed = 0
    try:
        async with asyncio.TaskGroup() as tasks:
            for task in [tasks.create_task(judged(case)) for case in cases]:
                verdict = await task
                failed += bool(verdict.reason)
                typer.echo(f"{'FAIL' if verdict.reason else 'PASS'}  {verdict.case.client}  {verdict.case.name}")
                if verdict.reason:
                    typer.echo(f"      {verdict.reason}\n      why: {verdict.case.why}")
    except ExceptionGroup as errors:
        # a client that can't be started fails each case for the same reason
        raise errors.exceptions[0] from None
    typer.echo(f"{len(cases) - failed} of {len(cases)} passed")
    if failed:
        raise typer.Exit(1)
