"""Starts several worker processes on one port, replaces those that die or hang, and stops them together.

The parent has no event loop and no thread: nothing a worker does can block or crash it. It forks before a worker opens
anything, so replacing a worker takes a fork and a few connects. Each worker listens on the port itself
(SO_REUSEPORT): the kernel spreads connections, and a dead worker gets none.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import structlog

from streamer.errors import SettingsError
from streamer.operations.workers.scoreboard import Scoreboard, Slot
from streamer.supervisor import MAX_DEATHS, WINDOW, RestartPolicy

log = structlog.get_logger()

CHECK = 0.25
"""Seconds between two checks of the workers."""
START_TIMEOUT = 60.0
"""Seconds until a worker must serve."""
KILL_AFTER = 15.0
"""Seconds beyond `drain_timeout` after which a worker that does not end is killed."""
FORK_AGAIN = 1.0
"""Seconds until a failed fork is retried."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Workers:
    """Runs `work(number)` in each worker, which returns its exit status; calls `ready()` once all serve."""

    def __init__(
        self,
        scoreboard: Scoreboard,
        work: Callable[[int], int],
        *,
        stuck_after: float,
        drain_timeout: float,
        ready: Callable[[], None],
    ) -> None:
        self._scoreboard = scoreboard
        self._work = work
        self._stuck_after = stuck_after
        self._drain_timeout = drain_timeout
        self._ready = ready
        self._pids: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._policy = RestartPolicy(max(MAX_DEATHS, 2 * scoreboard.count))
        self._served = False
        self._reported = False
        self._stops = 0
        self._status = 0
        self._parent = os.getpid()

    def run(self) -> int:
        """Runs the workers until a signal stops them or they keep dying; returns the exit status."""
        reader, writer = _pipe()
        before = {number: signal.signal(number, self._signalled) for number in SIGNALS}
        woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            return self._keep(reader)
        finally:
            for pid in self._pids.values():
                _kill(pid, signal.SIGKILL)
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _keep(self, reader: int) -> int:
        checked = time.monotonic()
        self._due = dict.fromkeys(range(self._scoreboard.count), checked)
        deadline: float | None = None
        while True:
            now = time.monotonic()
            if now - checked > CHECK + 1.0:
                self._reset_heartbeats(now)  # this process did not run either: the machine was suspended
            checked = now
            self._reap(now)
            if self._stops and deadline is None:
                deadline = now + self._drain_timeout + KILL_AFTER
                self._due.clear()
                for pid in self._pids.values():
                    _kill(pid, signal.SIGTERM)
            if deadline is not None:
                if not self._pids:
                    return self._status
                if now > deadline or self._stops > 1:
                    log.error("killing workers that do not stop in time", pids=sorted(self._pids.values()))
                    self._status = self._status or 1
                    for pid in self._pids.values():
                        _kill(pid, signal.SIGKILL)
            else:
                self._check(now)
            select.select([reader], [], [], CHECK)
            with suppress(BlockingIOError):
                os.read(reader, 4096)

    def _signalled(self, number: int, _: object) -> None:
        if number != signal.SIGCHLD and os.getpid() == self._parent:
            self._stops += 1

    def _check(self, now: float) -> None:
        for number in [number for number, due in self._due.items() if due <= now]:
            # The others wait until one worker has served: a wrong setting fails once, not once per worker.
            if not self._served and self._pids:
                break
            del self._due[number]
            self._start(number, now)
        slots = [self._scoreboard.slot(number) for number in range(self._scoreboard.count)]
        self._served = self._served or any(slot.serving for slot in slots)
        if not self._reported and all(slot.serving for slot in slots):
            self._reported = True
            self._ready()
        for number, pid in self._pids.items():
            slot = slots[number]
            silent = now - slot.beat
            if silent > (self._stuck_after if slot.serving else START_TIMEOUT):
                log.error("killing a stuck worker", worker=number, pid=pid, silent=round(silent, 1))
                # SIGABRT makes it print where it hangs; SIGKILL ends one that cannot even do that.
                _kill(pid, signal.SIGABRT)
                time.sleep(0.2)
                _kill(pid, signal.SIGKILL)

    def _start(self, number: int, now: float) -> None:
        held = self._scoreboard.slot(number)
        self._scoreboard.put(number, Slot(now, False, ""))
        sys.stdout.flush()
        sys.stderr.flush()
        # Blocked during the fork: a signal that reaches a worker with its parent's handlers would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:
            # It does not count as a death of a worker: the running ones continue to serve.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            log.error("cannot start a worker; trying again", worker=number, cause=str(error), seconds=FORK_AGAIN)
            self._scoreboard.put(number, held)  # the others still report its missing heartbeat
            self._due[number] = now + FORK_AGAIN
            return
        if pid == 0:
            self._become(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._pids[number] = pid

    def _become(self, number: int) -> None:
        """Turns this process into a worker; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for listened in SIGNALS:
                signal.signal(listened, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            with suppress(OSError):
                os.setpgid(0, 0)  # Ctrl-C goes to the parent, which stops all in order
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # a worker without a parent ends too
                if os.getppid() != self._parent:
                    os._exit(1)
            status = self._work(number)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self, now: float) -> None:
        for number, pid in tuple(self._pids.items()):
            ended, wait_status = os.waitpid(pid, os.WNOHANG)
            if ended != pid:
                continue
            del self._pids[number]
            status = os.waitstatus_to_exitcode(wait_status)
            served = self._scoreboard.slot(number).serving
            self._scoreboard.put(number, self._scoreboard.slot(number)._replace(serving=False, cause=""))
            if self._stops:
                self._status = self._status or (status if status > 0 else int(status < 0))
                continue
            if not served and not self._served:
                log.error("the first worker ended before it served", worker=number, status=status)
                self._status, self._stops = status if status > 0 else 1, 1
                return
            log.error("a worker ended unexpectedly", worker=number, pid=pid, status=_status_name(status))
            if (delay := self._policy.died(now)) is None:
                log.error(
                    "workers keep dying: the server stops; see their log lines",
                    deaths=len(self._policy.recent),
                    seconds=WINDOW,
                )
                self._status, self._stops = 1, 1
                return
            self._due[number] = now + delay

    def _reset_heartbeats(self, now: float) -> None:
        for number in self._pids:
            slot = self._scoreboard.slot(number)
            self._scoreboard.put(number, slot._replace(beat=max(slot.beat, now)))


def reserve(host: str, port: int) -> tuple[list[socket.socket], int]:
    """Reserves an address for the workers without listening on it.

    The address is first bound without SO_REUSEPORT: the kernel would not report a port that another server shares.

    Returns:
        Sockets that hold the address, and the port.

    Raises:
        OSError: The address is taken.
    """
    kind = socket.SOCK_STREAM
    if not hasattr(socket, "SO_REUSEPORT"):
        raise SettingsError("this system has no SO_REUSEPORT, so workers cannot share a port: leave out --workers")
    found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    held: list[socket.socket] = []
    try:
        for family, _, proto, _, address in found:
            address = (address[0], port, *address[2:])
            for shared in (False, True):
                one = socket.socket(family, kind, proto)
                held.append(one)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if shared:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind(address)
                port = one.getsockname()[1]
                address = (address[0], port, *address[2:])
                if not shared:
                    one.listen(1)
                    held.pop().close()
    except BaseException:
        for one in held:
            one.close()
        raise
    return held, port


def _status_name(status: int) -> str:
    """Returns the exit status, or the name of the signal that ended a process."""
    if status >= 0:
        return str(status)
    with suppress(ValueError):
        return signal.Signals(-status).name
    return str(status)


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer
