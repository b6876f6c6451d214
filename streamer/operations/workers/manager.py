"""Several processes on one port: started, watched, replaced when they die or hang, ended together.

The parent is small on purpose: no event loop, no thread, nothing that could hang or die of what its workers do. It
forks before anything of theirs is open, so a worker that died is replaced in the time of a fork and a connect. Each
worker listens on the same port itself (SO_REUSEPORT), so the kernel spreads connections and a dead one gets none.
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

log = structlog.get_logger()

LOOK = 0.25
"""Seconds between two looks at the workers."""
START_WITHIN = 60.0
"""Seconds in which a worker must serve."""
WINDOW = 60.0
MOST_DEATHS = 5
"""So many deaths within WINDOW, or two for each worker if that is more, are a crash loop: no restart mends that."""
AGAIN = 0.1
"""Seconds from a worker's first death to its replacement; longer by as much with each that follows."""
KILL_AFTER = 15.0
"""Seconds beyond the drain's for which a worker may take to end."""
LISTEN = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Workers:
    """`work(number)` runs in each worker and returns its exit status; `ready()` is called once all serve."""

    def __init__(
        self,
        board: Scoreboard,
        work: Callable[[int], int],
        *,
        stuck_after: float,
        drain_timeout: float,
        ready: Callable[[], None],
    ) -> None:
        self._scoreboard = board
        self._work = work
        self._stuck_after = stuck_after
        self._drain_timeout = drain_timeout
        self._ready = ready
        self._pids: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._deaths: list[float] = []
        self._counts = [0] * board.count
        self._served = False
        self._told = False
        self._stops = 0
        self._status = 0
        self._parent = os.getpid()

    def run(self) -> int:
        """Keep the workers until a signal ends them all, or they can't go on; the exit status."""
        hear, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        before = {number: signal.signal(number, self._signalled) for number in LISTEN}
        woken = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        try:
            return self._keep(hear)
        finally:
            for pid in self._pids.values():
                _kill(pid, signal.SIGKILL)
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(hear)
            os.close(tell)

    def _keep(self, hear: int) -> int:
        looked = time.monotonic()
        self._due = dict.fromkeys(range(self._scoreboard.count), looked)
        deadline: float | None = None
        while True:
            now = time.monotonic()
            # Nobody is blamed for a time in which this process did not run either: a machine that was suspended.
            if now - looked > LOOK + 1.0:
                self._excuse(now)
            looked = now
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
                    log.error("workers do not end in time and are killed", pids=sorted(self._pids.values()))
                    self._status = self._status or 1
                    for pid in self._pids.values():
                        _kill(pid, signal.SIGKILL)
            else:
                self._look(now)
            select.select([hear], [], [], LOOK)
            with suppress(BlockingIOError):
                os.read(hear, 4096)

    def _signalled(self, number: int, _: object) -> None:
        if number != signal.SIGCHLD and os.getpid() == self._parent:
            self._stops += 1

    def _look(self, now: float) -> None:
        for number in [number for number, due in self._due.items() if due <= now]:
            # Until one has served nobody knows whether any can: the first goes alone, and fails alone.
            if not self._served and self._pids:
                break
            del self._due[number]
            self._start(number, now)
        slots = [self._scoreboard.slot(number) for number in range(self._scoreboard.count)]
        self._served = self._served or any(slot.serving for slot in slots)
        if not self._told and all(slot.serving for slot in slots):
            self._told = True
            self._ready()
        for number, pid in self._pids.items():
            slot = slots[number]
            silent = now - slot.beat
            if silent > (self._stuck_after if slot.serving else START_WITHIN):
                log.error("a worker is stuck and is killed", worker=number, pid=pid, silent=round(silent, 1))
                # The first makes it say where it hangs, the second ends one that can't even do that.
                _kill(pid, signal.SIGABRT)
                time.sleep(0.2)
                _kill(pid, signal.SIGKILL)

    def _start(self, number: int, now: float) -> None:
        self._scoreboard.put(number, Slot(0, now, self._counts[number], False, ""))
        sys.stdout.flush()
        sys.stderr.flush()
        # Held back over the fork: one that is sent to a worker which still has its parent's handlers would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, LISTEN)
        pid = os.fork()
        if pid == 0:
            self._become(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTEN)
        self._pids[number] = pid
        self._scoreboard.put(number, self._scoreboard.slot(number)._replace(pid=pid))

    def _become(self, number: int) -> None:
        """From here on this process is a worker."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for listened in LISTEN:
                signal.signal(listened, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTEN)
            with suppress(OSError):
                os.setpgid(0, 0)  # Ctrl-C is for the parent, who ends all in order
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
            self._scoreboard.put(number, self._scoreboard.slot(number)._replace(pid=0, serving=False, cause=""))
            if self._stops:
                self._status = self._status or (status if status > 0 else int(status < 0))
                continue
            if not served and not self._served:
                log.error("the first worker ended before it served", worker=number, status=status)
                self._status, self._stops = status if status > 0 else 1, 1
                return
            self._counts[number] += 1
            self._deaths = [at for at in self._deaths if now - at < WINDOW] + [now]
            log.error("a worker ended by itself and is replaced", worker=number, pid=pid, status=_told(status))
            if len(self._deaths) >= max(MOST_DEATHS, 2 * self._scoreboard.count):
                log.error(
                    "workers end again and again: restarting mends nothing, so the server ends; their log says why",
                    deaths=len(self._deaths),
                    seconds=WINDOW,
                )
                self._status, self._stops = 1, 1
                return
            self._due[number] = now + AGAIN * len(self._deaths)

    def _excuse(self, now: float) -> None:
        for number in self._pids:
            slot = self._scoreboard.slot(number)
            self._scoreboard.put(number, slot._replace(beat=max(slot.beat, now)))


def reserve(host: str, port: int) -> tuple[list[socket.socket], int]:
    """Sockets that keep an address for this server without listening on it, and the port; OSError when it is taken.

    Others that share their ports as well would not be told by the kernel that this one is taken, so it is asked first.
    """
    kind = socket.SOCK_STREAM
    if not hasattr(socket, "SO_REUSEPORT"):
        raise SettingsError("several workers on one port are not possible on this system: leave out --workers")
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


def _told(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return str(status)
    with suppress(ValueError):
        return signal.Signals(-status).name
    return str(status)


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _pipe() -> tuple[int, int]:
    hear, tell = os.pipe()
    os.set_blocking(hear, False)
    os.set_blocking(tell, False)
    return hear, tell
