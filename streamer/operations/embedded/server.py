"""The part that PostgreSQL and Valkey share: start, watch, pause, stop and kill a server process.

A server listens on 127.0.0.1 only, keeps everything in one folder, and ends with the process that started it, even if
that one is killed (on Linux; elsewhere the next start on the same folder ends a remaining server). In the folder:

    postgresql/           the data, present only when complete
    postgresql.password   of the role `venta`, created on the first start
    postgresql.log        the server's output
    postgresql.lock       held while a process of ours uses the folder
    valkey/ .log .lock    the same for Valkey, which keeps no data
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import socket
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
# Below the ports of outgoing connections: one of those could take a stopped server's port, and a client that keeps
# trying to reach it could even connect to itself.
PORTS = range(15_000, 32_000)
PORT_ATTEMPTS = 5
START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0
POLL_INTERVAL = 0.01
MAX_LOG = 10 << 20
TAIL_LINES = 12

Progress = Callable[[str], None]

# The last step before a server runs: give up root, ask for a signal when the parent dies, become the server. It is a
# process of its own because code between fork and exec (preexec_fn) may hang in a process with threads. The death
# signal is set after the change of user, which would clear it.
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
        sys.exit("the process that started this server has ended")
os.umask(0o077)
os.execv(command[0], command)
"""


class Account(NamedTuple):
    """The user that a server runs as."""

    uid: int
    gid: int


class EmbeddedServer(ABC):
    """A server process in a folder of ours.

    Call `start` in the main thread: on Linux a server ends when the thread that started it ends. A failed start raises
    EmbeddedError with the last lines of the server's log.
    """

    kind: ClassVar[str]
    program: ClassVar[str]
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]
    """Signals that stop it in order, each with the seconds to wait. The first is also sent when our process dies."""

    def __init__(self, folder: Path, *, progress: Progress | None = None) -> None:
        self.folder = folder.absolute()
        self.account = Account(os.geteuid(), os.getegid())
        self._port: int | None = None
        self._progress = progress or (lambda message: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._log_start = 0

    @property
    def port(self) -> int:
        """The port on 127.0.0.1, chosen on the first start and kept."""
        if self._port is None:
            raise EmbeddedError(f"{self.kind} has no port yet: start it first")
        return self._port

    @property
    def pid(self) -> int:
        """The server's main process."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the main process is alive, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    @abstractmethod
    def url(self) -> str:
        """Connection URL with credentials."""

    @property
    def data(self) -> Path:
        """The server's own folder."""
        return self.folder / self.kind.lower()

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.data.with_suffix(".log")

    async def start(self) -> None:
        """Starts the server and returns once it accepts connections; sets up the folder on the first start."""
        if self._process is not None:
            raise EmbeddedError(f"{self.kind} in {self.folder} is already started: stop it first")
        try:
            self._choose_folder()
            self._take_lock()
            await self._end_leftovers()
            await self._prepare()
            await self._serve()
        except BaseException:
            self.kill()
            self._release_lock()
            raise

    async def stop(self) -> None:
        """Stops the server gracefully, or kills it when that takes too long; no-op when not started."""
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
        """Kills the server and all its processes, as a power cut would; no-op when not started."""
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
        """Freezes all processes of the server: connections stay open and nothing answers until `resume`."""
        for member in self._family(stopped=True):
            _signal(member, signal.SIGSTOP)

    def resume(self) -> None:
        """Continues a paused server."""
        for member in reversed(self._family(stopped=False)):
            _signal(member, signal.SIGCONT)

    async def restart(self) -> None:
        """Stops the server if it runs and starts it on the same port with the same data, also after `kill`."""
        await self.stop()
        await self.start()

    async def wait(self) -> int:
        """Waits for the end of the main process; returns its exit status (negative: the signal that ended it)."""
        process = self._started()
        while process.poll() is None:  # noqa: ASYNC110 - a process has no event to wait for
            await asyncio.sleep(10 * POLL_INTERVAL)
        return process.returncode

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    @abstractmethod
    async def _prepare(self) -> None:
        """Sets up the folder for a start."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's command line."""

    @abstractmethod
    async def _ready(self) -> bool:
        """Whether the server accepts connections."""

    def _choose_folder(self) -> None:
        """Creates the folder; a server may choose another account and folder."""
        make_folder(self.folder)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EmbeddedError(f"{self.kind} in {self.folder} is not started: start it first")
        return self._process

    async def _serve(self) -> None:
        chosen, attempts = self._port, 1 if self._port else PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            self._port = chosen or free_port()
            self._process = self._launch(self._command())
            self._progress(f"starting {self.kind} on {HOST}:{self._port}")
            if await self._accepts(self._process):
                return
            tail, status = self._tail(), self._process.poll()
            self.kill()
            taken = "Address already in use" in tail
            if taken and attempt < attempts:
                continue
            port, self._port = self._port, chosen
            if taken:
                raise EmbeddedError(f"{self.kind} cannot listen on {HOST}:{port}, the port is taken\n{tail}")
            what = f"ended with status {status}" if status is not None else f"was not ready after {START_TIMEOUT:g} s"
            raise EmbeddedError(f"{self.kind} in {self.data} {what}; the end of {self.log}:\n{tail}")

    async def _accepts(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if await self._ready():
                return True
            await asyncio.sleep(POLL_INTERVAL)
        return False

    async def _run(self, command: Sequence[str], stdin: bytes = b"") -> None:
        """Runs one of the server's tools to its end; the output goes to the log."""
        process = self._launch(command, stdin)
        try:
            if not await _until(lambda: process.poll() is not None, START_TIMEOUT):
                raise EmbeddedError(f"{command[0]} did not end within {START_TIMEOUT:g} s:\n{self._tail()}")
        finally:
            # its children too: initdb's postgres would go on writing
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            raise EmbeddedError(f"{command[0]} ended with status {process.returncode}:\n{self._tail()}")

    def _launch(self, command: Sequence[str], stdin: bytes = b"") -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
        arguments = [os.getpid(), self.stop_signals[0][0].value, self.account.uid, self.account.gid]
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if library_path := os.environ.get("LD_LIBRARY_PATH"):
            environment["LD_LIBRARY_PATH"] = library_path
        too_large = self.log.exists() and self.log.stat().st_size > MAX_LOG
        with tempfile.TemporaryFile() as given, open(self.log, "wb" if too_large else "ab", opener=_private) as log:
            given.write(stdin)
            given.seek(0)
            self._log_start = log.seek(0, os.SEEK_END)
            try:
                return subprocess.Popen(
                    [*launcher, *map(str, arguments), *command],
                    stdin=given,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=environment,
                    start_new_session=True,  # Ctrl-C goes to our process, which stops the servers in order
                )
            except OSError as error:
                raise EmbeddedError(f"{self.kind} cannot be started with {command[0]}: {error}") from error

    def _tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - (64 << 10)))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (no output)"

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = os.open(self.data.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
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
        """Ends the servers of a process that was killed: we hold the lock, so they have no owner."""
        left = [
            process
            for process in _psutil().process_iter(["name", "cmdline"])
            if process.info["name"] == self.program and str(self.data) in (process.info["cmdline"] or ())
        ]
        if not left:
            return
        self._progress(f"ending the {self.kind} of an earlier run")
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
            raise EmbeddedError(f"{self.kind} of an earlier run does not end: kill the processes {pids}")

    def _family(self, *, stopped: bool) -> list[Any]:
        """The main process and all its children; `stopped` first stops it, so that it cannot start more."""
        if not self.running:
            return []
        main = _psutil().Process(self.pid)
        if stopped:
            _signal(main, signal.SIGSTOP)
        return [main, *_children(main)]


def make_folder(folder: Path) -> None:
    """Creates a folder for one user's servers; root's lets PostgreSQL's user pass through."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0 and not any(folder.iterdir()):
            folder.chmod(0o711)
    except OSError as error:
        raise EmbeddedError(f"cannot create {folder}: {error}") from error


def free_port() -> int:
    """Returns a port of PORTS that nothing listens on."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise EmbeddedError(f"no free port on {HOST} among 100 tried between {PORTS.start} and {PORTS.stop}")


def _private(path: str, flags: int) -> int:
    """Opens a log file that only its owner can read."""
    opened = os.open(path, flags, 0o600)
    os.fchmod(opened, 0o600)  # also one that an earlier version made
    return opened


def _psutil() -> Any:
    # in the extra `dev`, so not imported where only serving is installed
    try:
        import psutil
    except ImportError as error:
        raise EmbeddedError("embedded servers need the package psutil: pip install 'venta-streamer[dev]'") from error
    return psutil


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


async def _until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_INTERVAL)
    return True
