"""Fixtures for all tests: a real PostgreSQL and a real Valkey, a database for each test, no error left unseen.

Under pytest-xdist every worker starts servers of its own, on the first test that needs them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote

import aiohttp
import asyncpg
import psutil
import pytest
import pytest_asyncio
import redis.asyncio
from hypothesis import HealthCheck, settings

from streamer.operations.embedded import PostgresServer, ValkeyServer
from streamer.storage.dsn import parse_url
from tests.support.apps import SECRET, eventually
from tests.support.paths import run_folder

if TYPE_CHECKING:
    from streamer.app import Server
    from streamer.storage.seed import SeededVendor
    from tests.support.browser import Chromium

TEMPLATE = "venta_template"
SERVING_ROLE = "venta_serving"
SERVING_PASSWORD = "of no use outside the tests"
MEMORY = Path("/dev/shm")  # the folders in it are made by mkdtemp
ROOM = 8 << 30
"""Bytes free in it and of memory, so that the servers of all of pytest's workers have room."""

# a busy machine takes longer than hypothesis allows by default, for a single example or to make the first ones
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


class Collected(logging.Handler):
    """What the event loop could only log, because nobody was there to raise it to."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(logging.Formatter().format(record))


def pytest_sessionfinish() -> None:
    """Lets pytest's last garbage collection see the objects that `loop_errors` froze."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def loop_errors(request: pytest.FixtureRequest) -> Iterator[Collected]:
    """Fails a test that leaves an error with the event loop: in a callback, in a task nobody awaits, a task destroyed.

    Every loop's default handler, asyncio's and uvloop's, ends in this logger, also in other threads and while the loop
    is closed. A test that provokes such an error on purpose clears `messages`.
    """
    collected = Collected()
    logger = logging.getLogger("asyncio")
    logger.addHandler(collected)
    asynchronous = pytest_asyncio.is_async_test(request.node)
    try:
        if asynchronous:
            # a collection of all modules and all that was collected as tests takes 0.1 s: only this test's is looked at
            gc.collect()
            gc.freeze()
        yield collected
        if asynchronous:
            gc.collect()  # an exception never retrieved is logged when its task is freed
    finally:
        logger.removeHandler(collected)
    if collected.messages:
        pytest.fail("left with the event loop:\n" + "\n".join(collected.messages))


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder for servers; not one of pytest's, which PostgreSQL's unprivileged user may not enter.

    In memory if there is room: a test's database is 430 files, which take 0.3 s to make on a disk, and 0.01 s there.
    """
    roomy = MEMORY.is_dir() and min(psutil.virtual_memory().available, psutil.disk_usage(str(MEMORY)).free) > ROOM
    with run_folder(MEMORY if roomy else Path(tempfile.gettempdir())) as folder:
        folder.chmod(0o711)
        yield folder


@pytest.fixture
def tmp_path(server_folder: Path, numbers: Iterator[int]) -> Iterator[Path]:
    """As pytest's own, but in a folder that PostgreSQL's unprivileged user may enter, so that data stays in it."""
    folder = server_folder / f"tmp_{next(numbers)}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(server_folder: Path) -> AsyncIterator[PostgresServer]:
    """The PostgreSQL that the tests of this process share."""
    async with PostgresServer(server_folder / "shared", durable=False) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def valkey(server_folder: Path) -> AsyncIterator[ValkeyServer]:
    """The Valkey that the tests of this process share."""
    async with ValkeyServer(server_folder / "shared") as server:
        yield server


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """A number for every database and folder, so that no two have the same name."""
    return count(1)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(postgres: PostgresServer) -> str:
    """The name of a migrated database, closed to connections so that it can be copied at any time."""
    from streamer.storage import migrate, roles  # not above: the tests of pure modules must run without it

    await _execute(postgres.url, f"CREATE DATABASE {TEMPLATE}")
    await migrate.upgrade(_sibling(postgres.url, TEMPLATE))
    await roles.grant(_sibling(postgres.url, TEMPLATE), SERVING_ROLE, SERVING_PASSWORD)
    await _execute(postgres.url, f"ALTER DATABASE {TEMPLATE} ALLOW_CONNECTIONS false")
    return TEMPLATE


@pytest.fixture
async def database_url(postgres: PostgresServer, template: str, numbers: Iterator[int]) -> AsyncIterator[str]:
    """A fresh migrated database, dropped afterwards with whatever connections are left."""
    name = f"test_{next(numbers)}"
    # copied as files: a third of the CPU time of the default, which logs each page
    await _execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield _sibling(postgres.url, name)
    await _execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def serving_url(database_url: str) -> str:
    """The database of `database_url` for the role under which servers run, which has the rights in `roles.RIGHTS`."""
    return as_serving(database_url)


@pytest.fixture
async def vendors(database_url: str) -> list[SeededVendor]:
    """Five vendors in `database_url`, each of a user of its own."""
    from streamer.storage import seed

    return await seed.seed(database_url, 5)


@pytest.fixture
def vendor(vendors: list[SeededVendor]) -> SeededVendor:
    """The first of `vendors`."""
    return vendors[0]


@pytest.fixture
async def direct(database_url: str) -> AsyncIterator[Any]:
    """A connection to the test's database as another service has one."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def empty_database_url(postgres: PostgresServer, numbers: Iterator[int]) -> AsyncIterator[str]:
    """A fresh database with nothing in it, dropped afterwards with whatever connections are left."""
    name = f"test_{next(numbers)}"
    await _execute(postgres.url, f"CREATE DATABASE {name}")
    yield _sibling(postgres.url, name)
    await _execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def redis_url(valkey: ValkeyServer) -> str:
    """The shared Valkey, emptied."""
    async with redis.asyncio.Redis.from_url(valkey.url) as client:
        await client.flushall()
    return valkey.url


@pytest.fixture
async def serving_redis_url(redis_url: str) -> str:
    """The shared Valkey for the user under which servers run, which has the rights that `streamer redis acl` prints."""
    from streamer.broker.redis_acl import acl_rules

    async with redis.asyncio.Redis.from_url(redis_url) as client:
        rules = acl_rules("venta:feed").split()
        await client.execute_command("ACL", "SETUSER", "streamer", "reset", "on", ">secret", *rules)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    return redis_url.replace("://", "://streamer:secret@")


@pytest.fixture
def own_folder(server_folder: Path, numbers: Iterator[int]) -> Iterator[Path]:
    """A folder for servers of the test's own, that no server has used yet."""
    folder = server_folder / f"own_{next(numbers)}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def empty_server(server_folder: Path) -> Path:
    """The folder of a stopped PostgreSQL with an empty database: a copy starts in a fifth of the time of a new one."""
    folder = server_folder / "empty"
    async with PostgresServer(folder, durable=False):
        pass
    return folder


@pytest.fixture
async def postgres_server(own_folder: Path, empty_server: Path) -> AsyncIterator[PostgresServer]:
    """A PostgreSQL of the test's own, its database empty: to kill, pause, resume, stop and restart."""
    copying = await asyncio.create_subprocess_exec("cp", "-a", empty_server, own_folder)  # keeps the owners
    assert await copying.wait() == 0
    async with PostgresServer(own_folder, durable=False) as server:
        yield server


@pytest.fixture
async def valkey_server(own_folder: Path) -> AsyncIterator[ValkeyServer]:
    """A Valkey of the test's own: to kill, pause, resume, stop and restart."""
    async with ValkeyServer(own_folder) as server:
        yield server


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection made as the server makes its own; errors are PostgreSQL's, unexplained."""
    from streamer.storage.connections import Connector

    parsed = parse_url(url)
    connection = await Connector(parsed)(**parsed.connect_args())
    try:
        yield connection
    finally:
        await connection.close()


def as_serving(url: str) -> str:
    """A test's database under the role of servers."""
    place = url.rpartition("@")[2]
    return f"postgresql://{SERVING_ROLE}:{quote(SERVING_PASSWORD)}@{place}"


def _sibling(url: str, name: str) -> str:
    return url.rsplit("/", 1)[0] + f"/{name}"


class Running(NamedTuple):
    """A running server and its URL."""

    server: Server
    url: str


class Serve(Protocol):
    """Starts one more server on the test's database and Redis; settings by name."""

    async def __call__(self, **changed: Any) -> Running: ...


@pytest.fixture
async def serve(serving_url: str, serving_redis_url: str) -> AsyncIterator[Serve]:
    """Whole servers in the test's own event loop, stopped afterwards in reverse order.

    They have the least rights: a query that needs more fails here, and `roles.RIGHTS` must name it.
    """
    from streamer import lifecycle, settings

    async with AsyncExitStack() as stack:

        async def start(**changed: Any) -> Running:
            values: dict[str, Any] = {
                "database_url": serving_url,
                "redis_url": serving_redis_url,
                "port": 0,
                "jwt_secret": SECRET,
                "watch_auth": "optional",
                "drain_timeout": 2.0,
                "pool_size": 4,
                **changed,
            }
            running = Running(*await stack.enter_async_context(lifecycle.serving(settings.load(**values))))

            await eventually(lambda: not running.server.health.unready(), "a server that is ready")
            return running

        yield start


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Chromium]:
    """The Chromium that the tests of this process share."""
    from tests.support.browser import chromium

    yield from chromium()
