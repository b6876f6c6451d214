"""`python -m loadtest`: run, find-max, compare, merge, report, scenarios, capacity, worker.

Exit codes: 0 passed · 1 a threshold or check failed, or the run could not be carried out · 2 wrong use · 130 Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from typer import Argument, Option

from loadtest import LoadtestError, WrongUse
from loadtest.capacity import Costs, Need, table
from loadtest.capacity import Plan as Capacity
from loadtest.engine import scenario as scenarios
from loadtest.engine.database import Database, measure_copy
from loadtest.engine.find_max import find
from loadtest.engine.run import SCHEMA, Run
from loadtest.engine.scenario import Scenario
from loadtest.engine.worker import first_cause, raise_file_limit, run_loop
from loadtest.engine.worker import remote as work_remotely
from loadtest.engine.worker_pool import Coordinator
from loadtest.options import (
    OutputOptions,
    RunOptions,
    ScenarioOptions,
    SearchOptions,
    Server,
    ServerOptions,
    address,
    chosen,
    part_of,
    takes,
)
from loadtest.reports.html import page
from loadtest.reports.outputs import FORMATS, as_json, targets
from loadtest.reports.several import compare, merge
from loadtest.reports.terminal import Dashboard, show_changes, summarise
from loadtest.reports.verdict import judge
from venta_client.errors import ClientError

REFRESH = 2

T = TypeVar("T")

app = typer.Typer(
    help="Puts a running server under load from outside, and verifies what it stored and showed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@takes(app, "run", ScenarioOptions, RunOptions, ServerOptions, OutputOptions)
def run(
    options: ScenarioOptions, run_options: RunOptions, server_options: ServerOptions, output: OutputOptions
) -> None:
    """Run a scenario with moving vendors and customers, and verify what the server did."""

    async def main() -> dict[str, Any]:
        scenario, trace = chosen(options, run_options)
        number, parts = part_of(run_options.part)
        if run_options.start_at is not None and run_options.repeat > 1:
            raise WrongUse(
                f"--start-at is the start of one run, --repeat is {run_options.repeat}: give one --start-at per command"
            )
        if run_options.start_at is not None and not time.time() < run_options.start_at < time.time() + 3600:
            raise WrongUse(
                f"--start-at is {run_options.start_at:.0f}, now is {time.time():.0f}: give one within the next hour"
            )
        if run_options.remote > 2 * options.workers:
            raise WrongUse(
                f"--remote is {run_options.remote}; --workers {options.workers} makes {2 * options.workers} workers"
            )
        server = Server(server_options)
        server.verifies(options)
        if parts > 1 and server_options.vendors_file is None:
            raise WrongUse("several machines need the same vendors: give each the same --vendors-file")
        done: list[dict[str, Any]] = []
        async with server.vendors(scenario) as identities, coordinating(run_options) as coordinator:
            plan = replace(
                server.plan(options, scenario, identities),
                trace=trace,
                remote=run_options.remote,
                part=number,
                parts=parts,
                start_at=run_options.start_at,
            )
            meter = await server.meter()
            while len(done) < run_options.repeat and not (done and done[-1]["interrupted"]):
                many = f", run {len(done) + 1} of {run_options.repeat}" if run_options.repeat > 1 else ""
                with Dashboard(scenario.title + many, quiet=output.json) as dashboard:
                    one = Run(plan, dashboard.show, meter)
                    if coordinator is not None:
                        coordinator.page = partial(live_page, one)
                    done.append(await one.carry_out(coordinator))
                plan = replace(plan, seed=plan.seed + 1)
            if run_options.bare_copy and server.database_url is not None:
                async with Database(server.database_url, server.own) as database:
                    bare = await measure_copy(database, identities, run_options.bare_copy)
                done = [judge(report | {"bare_copy": bare}) for report in done]
        return median_run(done)

    finish(executed(main()), output)


@takes(app, "find-max", ScenarioOptions, SearchOptions, ServerOptions, OutputOptions)
def find_max(
    options: ScenarioOptions, search: SearchOptions, server_options: ServerOptions, output: OutputOptions
) -> None:
    """Search for the highest load that keeps the thresholds, and show where the knee is."""
    interrupted = False

    async def main() -> dict[str, Any]:
        scenario = scenarios.load(options.name, options.changes())
        server = Server(server_options)
        server.verifies(options)
        meter = await server.meter()
        say = (lambda text: None) if output.json else (lambda text: typer.echo(text, err=True))

        async def step(wanted: Scenario, scale: float) -> dict[str, Any]:
            nonlocal interrupted
            async with server.vendors(wanted) as identities:
                plan = server.plan(options, wanted, identities)
                with Dashboard(f"{wanted.title}, {scale:.3g} times", quiet=output.json) as dashboard:
                    report = await Run(plan, dashboard.show, meter).carry_out()
            interrupted = interrupted or report["interrupted"]
            return report

        return await find(scenario, Path(options.name).stem, search, step, say, lambda: interrupted)

    finish(executed(main()), output)


@app.command("compare")
def compare_reports(
    before: Annotated[Path, Argument(help="the JSON report before", metavar="A.json", show_default=False)],
    after: Annotated[Path, Argument(help="the JSON report after", metavar="B.json", show_default=False)],
    tolerance: Annotated[float, Option(help="percent of change that is ignored", min=0, max=100)] = 5.0,
    out: Annotated[Path | None, Option(help="HTML file to write with both, figure by figure")] = None,
    json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> None:
    """Compare two reports, considering the noise; exit code 1 when a figure got worse from A to B."""
    with failures_named():
        report = compare(read_report(before), read_report(after), tolerance / 100)
    if out is not None:
        out.write_text(page(report), encoding="utf-8")
    if json:
        typer.echo(as_json({name: value for name, value in report.items() if name != "series"}), nl=False)
    else:
        show_changes(report, Console())
    end(report)


@app.command("merge")
def merge_reports(
    reports: Annotated[
        list[Path], Argument(help="one JSON report per machine", metavar="REPORT.json…", show_default=False)
    ],
    out: Annotated[list[Path] | None, Option(help="as for `run`")] = None,
    json: Annotated[bool, Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Merge the reports of several machines that drove one run, each with its own --part and the same --start-at."""
    with failures_named():
        merged = merge([read_report(path) for path in reports])
    finish(merged, OutputOptions(out, json))


@app.command("report")
def make_report(
    report: Annotated[Path, Argument(help="a report's JSON", metavar="REPORT.json", show_default=False)],
    out: Annotated[list[Path] | None, Option(help="as for `run`; default: the HTML beside the JSON")] = None,
) -> None:
    """Write a report in other formats."""
    with failures_named():
        found = read_report(report)
    for path in targets(out or [Path("html")], report.with_suffix("")):
        path.write_text(FORMATS[path.suffix](found), encoding="utf-8")
        typer.echo(f"written to {path}")


@app.command("scenarios")
def list_scenarios() -> None:
    """List the built-in scenarios."""
    for name in scenarios.names():
        found = scenarios.load(name)
        typer.echo(f"{name:18} {found.about} ({found.seconds:.0f} s)")


@app.command("worker")
def worker(
    url: Annotated[str, Argument(help="URL of the coordinator, `run --listen`", metavar="http://HOST:PORT")],
    key: Annotated[str, Option(help="the coordinator's --key", envvar="LOADTEST_KEY", show_envvar=True)],
    within: Annotated[float, Option(help="seconds to wait for the coordinator", min=1, max=3600)] = 60.0,
) -> None:
    """Run a part of the load for a coordinator on another machine, `run --listen HOST:PORT --remote N`."""
    executed(work_remotely(url, key, within))


@takes(app, "capacity", Capacity, Costs)
def capacity(plan: Capacity, costs: Costs) -> None:
    """Compute the machines that a number of vendors and customers needs, from measured costs per ping and position."""
    try:
        typer.echo("\n".join(table(plan, Need(plan, costs))))
    except ValueError as impossible:
        raise typer.BadParameter(str(impossible)) from None


# what the commands share


@asynccontextmanager
async def coordinating(options: RunOptions) -> AsyncIterator[Coordinator | None]:
    """Yields a coordinator that serves a live page and waits for remote workers, where one is asked for."""
    if options.listen is None:
        if options.remote:
            raise WrongUse("--remote needs --listen HOST:PORT, to which the workers connect")
        yield None
        return
    key = options.key or secrets.token_urlsafe(16)
    async with Coordinator(*address(options.listen), key, lambda: "<p>The run has not begun.") as coordinator:
        typer.echo(f"live page: http://{coordinator.host}:{coordinator.port}/", err=True)
        if options.remote and options.key is None:
            typer.echo(f"start each worker with --key {key}", err=True)
        yield coordinator


def live_page(run: Run) -> str:
    """Returns the page of a running load test, which reloads itself."""
    return page(run.report(), REFRESH)


@contextlib.contextmanager
def failures_named() -> Iterator[None]:
    """A known error becomes one line and exit code 1, wrong use exit code 2."""
    try:
        yield
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


def executed(main: Coroutine[Any, Any, T]) -> T:
    """Runs to the end."""
    raise_file_limit()
    with failures_named():
        return run_loop(main)


def median_run(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the run with the median delay, and the figures of all; it fails when one does."""
    if len(done) == 1:
        return done[0]
    ordered = sorted(done, key=lambda report: report["figures"]["watch_p50_ms"] or 0.0)
    reasons = [f"run {number}: {reason}" for number, one in enumerate(done, 1) for reason in one["reasons"]]
    return ordered[len(done) // 2] | {
        "repeats": [report["figures"] for report in done],
        "interrupted": any(report["interrupted"] for report in done),
        "reasons": reasons,
        "ok": not reasons,
    }


def read_report(path: Path) -> dict[str, Any]:
    """Returns a report's JSON; raises WrongUse when it is none."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as bad:
        raise WrongUse(f"{path} can't be read as a report: {bad}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise WrongUse(f"{path} is not a report of `python -m loadtest run` with the schema {SCHEMA}")
    return found


def finish(report: dict[str, Any], output: OutputOptions) -> None:
    """Writes the report, prints it, and exits with its verdict."""
    if not output.json or output.out:
        default = Path("reports") / f"{report['scenario']}-{datetime.now():%Y%m%d-%H%M%S}"
        written = save(report, targets(output.out, default))
        if not output.json:
            summarise(report, Console())
            typer.echo(f"written to {' and '.join(str(path) for path in written)}", err=True)
    if output.json:
        typer.echo(as_json(report), nl=False)
    end(report)


def end(report: dict[str, Any]) -> None:
    """Exits with a report's verdict, and names the reasons."""
    if report.get("interrupted"):
        raise typer.Exit(130)
    for reason in report["reasons"]:
        typer.echo(f"Error: {reason}", err=True)
    raise typer.Exit(0 if report["ok"] else 1)


def save(report: dict[str, Any], paths: Sequence[Path]) -> Sequence[Path]:
    """Writes each file; a report that can't be written is printed instead, so that no run is lost."""
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(FORMATS[path.suffix](report), encoding="utf-8")
    except OSError as failed:
        typer.echo(f"Error: the report can't be written: {failed}; it follows", err=True)
        with contextlib.suppress(BrokenPipeError):
            typer.echo(as_json(report), nl=False)
        raise typer.Exit(1) from None
    return paths


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
