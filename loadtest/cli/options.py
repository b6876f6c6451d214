"""Where the server is and what it needs, as all commands are told it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loadtest.cli.progress import Bar
from loadtest.cli.services import Services
from loadtest.clients.identity import Identity, enough, read, seed
from loadtest.clients.target import Target, check_host
from loadtest.clients.tokens import check_secret
from loadtest.engine.database import Database
from loadtest.errors import WrongUse
from loadtest.measure.process import Processes, parent, runs_here

DEFAULT_URL = "http://127.0.0.1:8080"
SECRET = "STREAMER_JWT_SECRET"

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

    def verifiable(self) -> None:
        """WrongUse unless what was stored can be looked at."""
        if self.database_url is None:
            raise WrongUse("--verify looks into the database; give --database or --data")

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
        if self._redis_url is None:
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
        return found if runs_here(found) else None
