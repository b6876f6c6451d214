"""`python -m loadtest replay|ingest|live`.

Exit codes: 0 for a good run, 1 when a check failed or the run could not be carried out, 2 for wrong use.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest import ingest as ingesting
from loadtest import live as living
from loadtest import replay as replaying
from loadtest.database import Database
from loadtest.errors import LoadtestError, RunFailed, WrongUse
from loadtest.identity import Identity, enough, read, seed
from loadtest.process import PROC, Processes, parent
from loadtest.progress import Bar
from loadtest.readiness import unready
from loadtest.report import write
from loadtest.services import Services
from loadtest.target import Target, check_host
from loadtest.token import check_secret
from loadtest.trace import Fix, generate
from loadtest.trace import read as read_trace
from venta_client.errors import ClientError

DEFAULT_URL = "http://127.0.0.1:8080"
SECRET = "STREAMER_JWT_SECRET"

app = typer.Typer(
    help="Puts a running server under load from outside, and checks what it stored and showed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Url = Annotated[str | None, typer.Option(help=f"the server; default: what --data says, or {DEFAULT_URL}")]
DatabaseUrl = Annotated[
    str | None, typer.Option("--database", help="the server's PostgreSQL URL; default: what --data says")
]
RedisUrl = Annotated[
    str | None, typer.Option("--redis", help="the server's Redis URL, to count its CPU; default: what --data says")
]
Data = Annotated[Path | None, typer.Option(help="data folder of a running `streamer dev`: its URLs and token secret")]
Secret = Annotated[str | None, typer.Option(help="HS256 secret for tokens", envvar=SECRET, show_envvar=True)]
VendorsFile = Annotated[
    str | None,
    typer.Option(help="JSON lines of `streamer db seed --json`, - for standard input; default: seed into --database"),
]
Own = Annotated[
    str | None,
    typer.Option("--i-own", help="repeat a host's name that is neither loopback nor private", metavar="HOST"),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object instead of a table, no progress")]
Pid = Annotated[int | None, typer.Option(help="the server's process, to measure its CPU", min=1)]
Seed = Annotated[int, typer.Option("--seed", help="what all chance starts from")]
Seconds = Annotated[float, typer.Option(help="length of each timed part", min=1, max=600)]


@app.command()
def replay(
    trace: Annotated[
        Path | None, typer.Argument(help="gzip CSV: vehicle,timestamp,lat,long", metavar="FILE.csv.gz")
    ] = None,
    made_up: Annotated[
        int | None, typer.Option("--generate", help="no file: so many made-up vehicles", min=1, max=5000)
    ] = None,
    seconds: Annotated[int, typer.Option(help="length of the made-up trace", min=10, max=86_400)] = 300,
    speedup: Annotated[float, typer.Option(help="divide all gaps by this", min=0.01, max=100_000)] = 1.0,
    watch: Annotated[
        str | None, typer.Option(help="lat,long,radius in m; default: 5 km round the middle of the trace")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="check what was stored and shown")] = False,
    url: Url = None,
    database: DatabaseUrl = None,
    data: Data = None,
    secret: Secret = None,
    vendors_file: VendorsFile = None,
    i_own: Own = None,
    random_seed: Seed = 0,
    json: Json = False,
) -> None:
    """Replay a trace: each vehicle is a vendor, in its own rhythm, moved onto the present."""

    async def run(bar: Bar) -> dict[str, Any]:
        fixes = trace_of(trace, made_up, seconds, random_seed)
        place = Place(url, database, None, data, secret, i_own)
        if verify and place.database_url is None:
            raise WrongUse("--verify looks into the database; give --database or --data")
        wanted = len({fix.vehicle for fix in fixes})
        plan = replaying.Replay(
            target=place.target,
            secret=place.secret,
            identities=await place.vendors(vendors_file, wanted, bar),
            fixes=fixes,
            speedup=speedup,
            watch=circle(watch),
            verify=verify,
            seed=random_seed,
        )
        if place.database_url is None:
            return await attended(place.target, replaying.run(plan, bar))
        async with Database(place.database_url, i_own) as connected:
            return await attended(place.target, replaying.run(replace(plan, database=connected), bar))

    perform(run, json)


@app.command()
def ingest(
    seconds: Seconds = 10.0,
    connections: Annotated[int, typer.Option(help="connections that send batches", min=1, max=1000)] = 16,
    many: Annotated[int, typer.Option(help="connections that send one ping a second", min=1, max=10_000)] = 1000,
    window: Annotated[int, typer.Option(help="batches of 500 un-acked on a connection", min=1, max=64)] = 4,
    single_window: Annotated[
        int, typer.Option(help="single pings un-acked on their connection", min=1, max=20_000)
    ] = 1000,
    bare_rows: Annotated[int, typer.Option(help="rows of each bare COPY", min=100, max=500_000)] = 50_000,
    part: Annotated[
        list[str] | None, typer.Option(help=f"only this part: {', '.join(ingesting.PARTS)}; may be repeated")
    ] = None,
    pid: Pid = None,
    url: Url = None,
    database: DatabaseUrl = None,
    redis: RedisUrl = None,
    data: Data = None,
    secret: Secret = None,
    vendors_file: VendorsFile = None,
    i_own: Own = None,
    random_seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure what storing costs, next to a bare COPY into the same table. The rows stay in the database."""

    async def run(bar: Bar) -> dict[str, Any]:
        parts = part or list(ingesting.PARTS)
        if unknown := sorted(set(parts) - set(ingesting.PARTS)):
            raise WrongUse(f"there is no part {unknown[0]!r}; the parts are {', '.join(ingesting.PARTS)}")
        place = Place(url, database, redis, data, secret, i_own)
        if place.database_url is None:
            raise WrongUse("ingest compares with the database itself; give --database or --data")
        identities = await place.vendors(vendors_file, ingesting.vendors_needed(connections, many), bar)
        async with Database(place.database_url, i_own) as connected:
            plan = ingesting.Ingest(
                target=place.target,
                secret=place.secret,
                identities=identities,
                database=connected,
                processes=await place.processes(pid, connected),
                seconds=seconds,
                connections=connections,
                many=many,
                window=window,
                single_window=single_window,
                bare_rows=bare_rows,
                parts=parts,
                seed=random_seed,
            )
            return await attended(place.target, ingesting.run(plan, bar))

    perform(run, json)


@app.command()
def live(
    vendors: Annotated[int, typer.Option(help="vendors that report", min=1, max=20_000)] = 200,
    hz: Annotated[float, typer.Option(help="pings a second of each vendor", min=0.01, max=100)] = 1.0,
    watchers: Annotated[int, typer.Option(help="watchers of all of them", min=0, max=20_000)] = 200,
    distinct: Annotated[bool, typer.Option("--distinct", help="each watcher has a circle of its own")] = False,
    idle: Annotated[
        int, typer.Option(help="measure memory with so many watchers of an empty place", min=0, max=25_000)
    ] = 0,
    seconds: Seconds = 10.0,
    pid: Pid = None,
    url: Url = None,
    database: DatabaseUrl = None,
    redis: RedisUrl = None,
    data: Data = None,
    secret: Secret = None,
    vendors_file: VendorsFile = None,
    i_own: Own = None,
    random_seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure what showing costs and how late it is: open-loop vendors, many watchers."""

    async def run(bar: Bar) -> dict[str, Any]:
        place = Place(url, database, redis, data, secret, i_own)
        if idle and pid is None:
            raise WrongUse("--idle measures the server's memory; give its process by --pid")
        identities = await place.vendors(vendors_file, vendors, bar)
        plan = living.Live(
            target=place.target,
            secret=place.secret,
            identities=identities,
            processes=await place.processes(pid, None),
            hz=hz,
            watchers=watchers,
            seconds=seconds,
            distinct=distinct,
            idle=idle,
            seed=random_seed,
        )
        return await attended(place.target, living.run(plan, bar))

    perform(run, json)


class Place:
    """The server, its database and its secret, from the options and a data folder."""

    def __init__(
        self,
        url: str | None,
        database: str | None,
        redis: str | None,
        data: Path | None,
        secret: str | None,
        own: str | None,
    ) -> None:
        services = Services.read(data) if data is not None else Services()
        self.target = Target.parse(url or services.http or DEFAULT_URL, own)
        self.database_url = database or services.database
        self.own = own
        self._redis_url = redis or services.redis
        found = secret or services.secret
        if not found:
            raise WrongUse(f"tokens need the server's secret; give it as {SECRET}, --secret or --data")
        check_secret(found)
        self.secret = found

    async def vendors(self, source: str | None, wanted: int, bar: Bar) -> Sequence[Identity]:
        """As many vendors as wanted, from a file or seeded."""
        if source is not None:
            return enough(read(source), wanted, "standard input" if source == "-" else source)
        if self.database_url is None:
            raise WrongUse(
                "vendors must be known to the server; give --vendors-file, or --database or --data to seed them"
            )
        Database(self.database_url, self.own)  # seeding a stranger's database is no less a harm
        bar.show(f"seeding {wanted} vendors")
        return enough(await seed(wanted, self.database_url), wanted, "`streamer db seed`")

    async def processes(self, pid: int | None, database: Database | None) -> Processes | None:
        """The server's processes when its pid was given; PostgreSQL's and Redis's too, whoever started them."""
        if pid is None:
            return None
        roots = [pid, await self._postmaster(database), await self._redis_pid()]
        return Processes([root for root in roots if root is not None])

    async def _postmaster(self, database: Database | None) -> int | None:
        if database is not None:
            return parent(await database.backend(), "postgres")
        if self.database_url is None:
            return None
        async with Database(self.database_url, self.own) as connected:
            return parent(await connected.backend(), "postgres")

    async def _redis_pid(self) -> int | None:
        """Redis's process if it runs here; it is counted when it can be asked, and no reason to fail."""
        if self._redis_url is None or not PROC.is_dir():
            return None
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        client = Redis.from_url(self._redis_url, socket_timeout=5, socket_connect_timeout=5)
        try:
            check_host(str(client.connection_pool.connection_kwargs.get("host", "127.0.0.1")), self.own)
            found = int((await client.info("server"))["process_id"])
        except (RedisError, OSError, KeyError) as failed:
            raise WrongUse(f"Redis can't be asked for its process: {failed!r}; check --redis") from None
        finally:
            await client.aclose()
        return found if (PROC / str(found)).is_dir() else None


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


def trace_of(path: Path | None, made_up: int | None, seconds: int, random_seed: int) -> list[Fix]:
    """The trace that was asked for: a file or a made-up one, not both."""
    if (path is None) == (made_up is None):
        raise WrongUse("give either a trace file or --generate VEHICLES")
    return read_trace(path) if path is not None else generate(made_up or 0, seconds, random_seed)


def circle(text: str | None) -> tuple[float, float, float] | None:
    """The three numbers of --watch."""
    if text is None:
        return None
    try:
        lat, long, radius = (float(part) for part in text.split(","))
    except ValueError:
        raise WrongUse(f"--watch is {text!r}; it must be lat,long,radius like 52.2297,21.0122,5000") from None
    if not (abs(lat) <= 90 and abs(long) <= 180 and 0 < radius <= 100_000):
        raise WrongUse(f"--watch is {text!r}; lat is -90 to 90, long -180 to 180, radius up to 100,000 m")
    return lat, long, radius


def perform(run: Callable[[Bar], Coroutine[Any, Any, dict[str, Any]]], json: bool) -> None:
    """Carry a run out, print its report, and exit as it went."""
    raise_file_limit()
    try:
        with Bar(quiet=json) as bar:
            report = run_loop(run(bar))
    except BaseException as failure:
        error = first_cause(failure)
        if isinstance(error, WrongUse):
            raise typer.BadParameter(str(error)) from None
        if isinstance(error, LoadtestError | ClientError):
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from None
        raise
    write(report, json, Console(file=sys.stdout))
    if not report["ok"]:
        typer.echo("Error: not everything is as it must be; see the report", err=True)
        raise typer.Exit(1)


def run_loop(main: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def first_cause(failure: BaseException) -> BaseException:
    """The first error of a group that is no group."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


def raise_file_limit() -> None:
    """Every connection is a file: take as many as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
