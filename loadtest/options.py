"""The options of the commands, as dataclasses that commands share, and their evaluation."""

from __future__ import annotations

import inspect
import math
import re
import secrets
import tomllib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import orjson
import psutil
import typer
from typer import Argument, Option

from loadtest import WrongUse, behaviour
from loadtest.behaviour import CustomerBehaviour, VendorBehaviour, beginning, read_trace, surroundings
from loadtest.clients.target import Identity, Target, check_host, check_secret, enough, read_vendors
from loadtest.engine import scenario as scenarios
from loadtest.engine.database import Database
from loadtest.engine.population import Plan, Trace
from loadtest.engine.scenario import Course, Limit, Scenario
from loadtest.measure.server import Meter, MetricsMeter, Processes, environment, parent

DEFAULT_URL = "http://127.0.0.1:8080"
SECRET = "STREAMER_JWT_SECRET"
CUSTOMERS_OF_A_USER = 100
EXPRESSION = re.compile(r"^\s*([a-z_0-9]+)\s*(<=|>=|<|>|=)\s*(\S+)\s*$")
Vary = Literal["both", "vendors", "customers"]
EPILOG = f"SCENARIO is a .toml file or one of: {', '.join(scenarios.names())}."


def takes(app: typer.Typer, name: str, *configs: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose options are the fields of dataclasses; the function gets an object of each."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = {key: hint for config in configs for key, hint in get_type_hints(config, include_extras=True).items()}
        parameters = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if one.default is MISSING else one.default,
                annotation=hints[one.name],
            )
            for config in configs
            for one in fields(config)
        ]

        def command(**given: Any) -> None:
            function(*(config(**{one.name: given[one.name] for one in fields(config)}) for config in configs))

        command.__doc__ = function.__doc__
        command.__annotations__ = hints
        command.__dict__["__signature__"] = inspect.Signature(parameters)
        app.command(name)(command)
        return function

    return register


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The server, its database and Redis."""

    url: Annotated[str | None, Option(help=f"the server; default: that of --data, or {DEFAULT_URL}")] = None
    database: Annotated[str | None, Option(help="the server's PostgreSQL URL; default: that of --data")] = None
    redis: Annotated[str | None, Option(help="the server's Redis URL, to measure its CPU; default: of --data")] = None
    data: Annotated[Path | None, Option(help="data folder of a running `streamer dev`: its URLs and token secret")] = (
        None
    )
    secret: Annotated[str | None, Option(help="HS256 secret for tokens", envvar=SECRET, show_envvar=True)] = None
    vendors_file: Annotated[
        str | None,
        Option(help="JSON lines of `streamer db seed --json`, - for standard input; default: new vendors"),
    ] = None
    keep_vendors: Annotated[
        bool, Option("--keep-vendors", help="do not remove the vendors of this run from the database afterwards")
    ] = False
    i_own: Annotated[
        str | None, Option(help="repeat a host's name that is neither loopback nor private", metavar="HOST")
    ] = None
    pid: Annotated[int | None, Option(help="the server's process, to measure its CPU", min=1)] = None


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """The scenario and the changes to it."""

    name: Annotated[str, Argument(help=EPILOG, metavar="SCENARIO", show_default=False)]
    vendors: Annotated[int | None, Option(help="vendors at level 1", min=1)] = None
    customers: Annotated[int | None, Option(help="customers at level 1", min=0)] = None
    change: Annotated[
        list[str] | None, Option("--set", help="any other member of the scenario", metavar="NAME=VALUE")
    ] = None
    threshold: Annotated[
        list[str] | None,
        Option(help="like watch_p99_ms<=200, acks_per_s>=1000 or errors=false for none", metavar="FIGURE<=LIMIT"),
    ] = None
    workers: Annotated[int, Option(help="processes for vendors, and as many for customers", min=1, max=64)] = 1
    sampled: Annotated[int, Option(help="customers whose whole view is held and verified", min=0, max=1000)] = 20
    no_verify: Annotated[
        bool, Option("--no-verify", help="do not compare what is stored and shown with what was sent")
    ] = False
    seed: Annotated[int, Option(help="start value of all random numbers")] = 0
    tag: Annotated[list[str] | None, Option(help="a label of the reports", metavar="NAME=VALUE")] = None

    def changes(self) -> list[tuple[str, Any]]:
        """Returns what the options change, by dotted names."""
        found = assignments(self.change or ())
        found += [
            (dotted, value)
            for dotted, value in (("vendors.count", self.vendors), ("customers.count", self.customers))
            if value is not None
        ]
        return found + [(f"thresholds.{name}", limit) for name, limit in thresholds(self.threshold or ())]

    def tags(self) -> dict[str, str]:
        """Returns the tags by name."""
        return {name: str(value) for name, value in assignments(self.tag or ())}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How one run is made."""

    scale: Annotated[float, Option(help="multiply vendors and customers", min=0.001, max=1000)] = 1.0
    warmup: Annotated[float | None, Option(help="seconds left out of the figures", min=0)] = None
    stage: Annotated[
        list[str] | None,
        Option(help="instead of the scenario's: ramp:SECONDS:LEVEL, hold:S, spike:S:LEVEL, storm:S:SHARE"),
    ] = None
    trace: Annotated[
        Path | None, Option(help="gzip CSV vehicle,timestamp,lat,long that drives the vendors", metavar="FILE")
    ] = None
    speedup: Annotated[float, Option(help="divide the gaps of --trace by this", min=0.01, max=1000)] = 1.0
    bare_copy: Annotated[int, Option(help="rows to COPY without the server, for comparison", min=0, max=1_000_000)] = 0
    repeat: Annotated[int, Option(help="number of runs, to see how much they differ", min=1, max=20)] = 1
    part: Annotated[str, Option(help="this machine's part of a run on several, like 2/3; see also --remote")] = "1/1"
    start_at: Annotated[float | None, Option(help="when to start, in epoch seconds, the same on all machines")] = None
    remote: Annotated[
        int, Option(help="number of workers on other machines: `python -m loadtest worker`", min=0, max=128)
    ] = 0
    listen: Annotated[
        str | None, Option(help="serve a live page, and wait for remote workers, at HOST:PORT", metavar="HOST:PORT")
    ] = None
    key: Annotated[
        str | None, Option(help="secret that remote workers must give", envvar="LOADTEST_KEY", show_envvar=True)
    ] = None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of the search for the highest load."""

    vary: Annotated[Vary, Option(help="the counts to scale")] = "both"
    first: Annotated[float, Option("--from", help="the first scale to try", min=0.001, max=1000)] = 1.0
    highest: Annotated[float, Option("--up-to", help="the highest scale to try", min=0.001, max=10_000)] = 10_000
    most: Annotated[int, Option("--steps", help="maximum number of scales to try", min=1, max=40)] = 12
    seconds: Annotated[float, Option(help="seconds that each scale is measured", min=2, max=600)] = 15.0


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where the report goes."""

    out: Annotated[
        list[Path] | None,
        Option(
            help="a format (json, html, csv, prometheus, junit), or a file: .json, .html, .csv, .prom, .xml, or a NAME "
            "for NAME.json and NAME.html; may be repeated; default: reports/SCENARIO-TIME"
        ),
    ] = None
    json: Annotated[bool, Option("--json", help="print the report as JSON, no progress")] = False


@dataclass(frozen=True, slots=True)
class Services:
    """The URLs of a server, its database and Redis; `secret` signs its tokens; None is unknown."""

    http: str | None = None
    database: str | None = None
    redis: str | None = None
    secret: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Services:
        """Returns what `services.json` and `jwt-secret` in the data folder of a development server contain."""
        path = folder / "services.json"
        try:
            found = orjson.loads(path.read_bytes())
            http, database, redis = found["http"], found["database"], found["redis"]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as bad:
            raise WrongUse(
                f"{path} can't be used ({bad!r}); is this the data folder of a running `streamer dev`?"
            ) from None
        secret = folder / "jwt-secret"
        return cls(http, database, redis, secret.read_text(encoding="utf-8").strip() if secret.exists() else None)


class Server:
    """The server under test, its database and its secret."""

    def __init__(self, options: ServerOptions) -> None:
        services = Services.read(options.data) if options.data is not None else Services()
        self.target = Target.parse(options.url or services.http or DEFAULT_URL, options.i_own)
        self.database_url = options.database or services.database
        self.own = options.i_own
        self._options = options
        self._redis_url = options.redis or services.redis
        found = options.secret or services.secret
        if not found:
            raise WrongUse(f"tokens need the server's secret; give it as {SECRET}, --secret or --data")
        check_secret(found)
        self.secret = found

    def verifies(self, options: ScenarioOptions) -> bool:
        """Returns whether to verify; raises WrongUse where that is impossible and not waived."""
        if options.no_verify:
            return False
        if self.database_url is None:
            raise WrongUse("the database is needed to verify pings; give --database or --data, or --no-verify")
        return True

    def plan(self, options: ScenarioOptions, scenario: Scenario, identities: Sequence[Identity]) -> Plan:
        """Returns the plan of a run of a scenario on this server."""
        return Plan(
            target=self.target,
            secret=self.secret,
            scenario=scenario,
            name=Path(options.name).stem,
            identities=identities,
            database=self.database_url,
            own=self.own,
            verify=self.verifies(options),
            workers=options.workers,
            sampled=options.sampled,
            seed=options.seed,
            tags=options.tags(),
            environment=environment(),
        )

    @asynccontextmanager
    async def vendors(self, scenario: Scenario) -> AsyncIterator[list[Identity]]:
        """Yields a scenario's vendors: from a file, or of this run alone, which are removed at the end.

        A vendor's owner stands for customers too. There are more of them than vendors where many customers look, as
        the server limits the connections of one user.
        """
        peak = Course(scenario.stages).peak()
        wanted = math.ceil(scenario.vendors.count * peak.vendors)
        customers = math.ceil(scenario.customers.count * peak.customers / CUSTOMERS_OF_A_USER)
        source = self._options.vendors_file
        if source is not None:
            yield enough(read_vendors(source), wanted, "standard input" if source == "-" else source)
            return
        if self.database_url is None:
            raise WrongUse("the server must know the vendors; give --vendors-file, or --database or --data to add some")
        async with Database(self.database_url, self.own) as database:
            made = await database.add_vendors(secrets.token_hex(4), max(wanted, customers))
        try:
            yield made
        finally:
            if not self._options.keep_vendors:
                async with Database(self.database_url, self.own) as database:
                    await database.remove_vendors(made)

    async def meter(self) -> Meter | None:
        """Returns what measures the server: its processes if --pid was given, else `/metrics`, where there are such."""
        if self._options.pid is None:
            found = MetricsMeter(self.target)
            return found if await found.look() is not None else None
        roots = [self._options.pid, await self._postmaster(), await self._redis_pid()]
        return Processes([root for root in roots if root is not None])

    async def _postmaster(self) -> int | None:
        if self.database_url is None:
            return None
        async with Database(self.database_url, self.own) as database:
            return parent(await database.backend(), "postgres")

    async def _redis_pid(self) -> int | None:
        if self._redis_url is None:
            return None
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        client = Redis.from_url(self._redis_url, socket_timeout=5, socket_connect_timeout=5)
        try:
            check_host(str(client.connection_pool.connection_kwargs.get("host", "127.0.0.1")), self.own)
            found = int((await client.info("server"))["process_id"])
        except (RedisError, OSError, KeyError) as failed:
            raise WrongUse(f"Redis did not report its process id: {failed!r}; check --redis") from None
        finally:
            await client.aclose()
        return found if psutil.pid_exists(found) else None


def chosen(options: ScenarioOptions, run: RunOptions) -> tuple[Scenario, Trace | None]:
    """Returns the scenario as the options change it, and the trace that drives its vendors.

    With a trace the city is where the trace is, its vehicles are the vendors, and one stage lasts as long as it.
    """
    changes = options.changes()
    if run.warmup is not None:
        changes.append(("warmup", run.warmup))
    if run.stage:
        changes.append(("stages", stages(run.stage)))
    if run.trace is None:
        scenario = scenarios.load(options.name, changes).scaled(run.scale)
        for name, base in (
            (scenario.vendors.behaviour, VendorBehaviour),
            (scenario.customers.behaviour, CustomerBehaviour),
        ):
            if name is not None:
                behaviour.load(name, base)  # a mistake is found here and not in a worker
        return scenario, None
    fixes = sorted(read_trace(run.trace), key=lambda fix: fix.timestamp)
    lat, long, radius = surroundings(fixes)
    zero = fixes[beginning(fixes)].timestamp
    seconds = min(scenarios.MAX_SECONDS, (fixes[-1].timestamp - zero) / 1000 / run.speedup + 1)
    vehicles = min(len({fix.vehicle for fix in fixes}), scenarios.MAX_APPS)
    given: list[tuple[str, Any]] = [
        ("city.lat", lat),
        ("city.long", long),
        ("city.radius", radius),
        ("vendors.count", vehicles),
    ]
    if not run.stage:
        given.append(("stages", [{"kind": "hold", "seconds": seconds}]))
    scenario = scenarios.load(options.name, [*given, *changes])
    return scenario, Trace(str(run.trace.resolve()), zero, run.speedup)


def thresholds(texts: Iterable[str]) -> list[tuple[str, Limit]]:
    """Returns the members of `thresholds` that --threshold gives, like `watch_p99_ms<=200` or `errors=false`."""
    made: list[tuple[str, Limit]] = []
    for text in texts:
        found = EXPRESSION.match(text)
        if found is None:
            raise WrongUse(
                f"--threshold is {text!r}; it must be like watch_p99_ms<=200, acks_per_s>=1000 or errors=false"
            )
        name, comparison, limit = found.groups()
        if comparison == "=":
            made.append((name, False if limit == "false" else limit))
        else:
            made.append((name, f"{comparison} {limit}"))
    return made


def assignments(texts: Iterable[str]) -> list[tuple[str, Any]]:
    """Returns the `NAME=VALUE` pairs of --set; a value that is not TOML is text."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise WrongUse(f"--set is {text!r}; it must be NAME=VALUE like city.density=80")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        found.append((name.strip(), parsed))
    return found


def stages(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the stages that --stage gives: `ramp:30:1`, `hold:60`, `spike:10:3`, `storm:20:0.5` (a share)."""
    found = []
    for text in texts:
        kind, _, rest = text.partition(":")
        seconds, colon, number = rest.partition(":")
        try:
            stage: dict[str, Any] = {"kind": kind, "seconds": float(seconds)}
            if colon:
                stage["share" if kind == "storm" else "to"] = float(number)
        except ValueError:
            raise WrongUse(
                f"--stage is {text!r}; it must be KIND:SECONDS or KIND:SECONDS:LEVEL like ramp:30:1, hold:60, "
                "spike:10:3 or storm:20:0.5"
            ) from None
        found.append(stage)
    return found


def part_of(text: str) -> tuple[int, int]:
    """Returns the two numbers of --part."""
    try:
        number, parts = (int(one) for one in text.split("/"))
        if not 1 <= number <= parts <= 100:
            raise ValueError
    except ValueError:
        raise WrongUse(f"--part is {text!r}; it must be NUMBER/OF like 2/3") from None
    return number, parts


def address(text: str) -> tuple[str, int]:
    """Returns the host and port of --listen."""
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        raise WrongUse(f"--listen is {text!r}; it must be HOST:PORT like 127.0.0.1:9090")
    return host.strip("[]") or "127.0.0.1", int(port)
