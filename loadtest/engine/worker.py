"""One worker process of a run. It reads commands as JSON and reports what it counted.

Orders: {"do":"prepare","share":…}, {"do":"start","at":ms}, {"do":"stop"}, {"do":"acked",…}, {"do":"settle"},
{"do":"verify",…}, {"do":"end"}. Reports: {"is":"ready"}, one {"is":"second",…} each second, {"is":"acked",…} from
vendors that are audited, {"is":"driven"} when the stages are over, and an answer to each settle, verify and end.

A local worker speaks JSON lines on standard input and output; one on another machine speaks over a WebSocket of the
coordinator (`python -m loadtest worker`). It ends with that connection, so that no orphan goes on sending load.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import aiohttp
import orjson

from loadtest import LoadtestError, RunFailed
from loadtest.clients.app import App
from loadtest.engine.audience import Audience, live_of
from loadtest.engine.fleet import Fleet
from loadtest.engine.population import SHARE, Share
from loadtest.measure.recording import Recorder
from loadtest.measure.server import offset
from venta_client.errors import ClientError

LONGEST_MESSAGE = 512 << 20
STOP_WITHIN = 10.0
SEND_ACKED_EVERY = 0.25
MAX_QUOTED = 20

Message = dict[str, Any]
Send = Callable[[Message], None]
T = TypeVar("T")


class Worker:
    """The apps of one share, from `start` to `end`."""

    def __init__(self, share: Share, group: asyncio.TaskGroup, send: Send) -> None:
        self.recorder = Recorder()
        self.share = share
        self.stopping = asyncio.Event()
        made = Fleet if share.kind == "vendors" else Audience
        self.population: Fleet | Audience = made(share, self.recorder, self.now, group)
        self._send = send
        self._cpu = 0.0

    def now(self) -> float:
        """Returns the server's time in epoch ms."""
        return time.time() * 1000 + self.share.offset

    async def drive(self, start: float) -> None:
        """Waits for `start` (epoch ms of the server), goes through the stages, and reports every second."""
        await asyncio.sleep(max(0.0, (start - self.now()) / 1000))
        self._cpu = time.process_time()
        driving = asyncio.create_task(self.population.run(start, self.stopping))
        try:
            second = 0
            while not driving.done():
                left = (start - self.now()) / 1000 + second + 1
                await asyncio.wait({driving}, timeout=min(max(0.001, left), SEND_ACKED_EVERY))
                self._send_acked()
                passed = int((self.now() - start) / 1000)
                if driving.done() or passed > second:
                    # seconds that were slept through are reported as the last of them
                    self._send_second(second if driving.done() else passed - 1)
                    second = passed
            await driving
        finally:
            driving.cancel()
        self._send({"is": "driven"})

    async def answer(self, order: Message) -> Message | None:
        """Carries out an order to settle, verify, end or take in acked pings; returns the answer."""
        population = self.population
        match order["do"]:
            case "acked" if isinstance(population, Audience):
                population.acked(order)
            case "settle" if isinstance(population, Fleet):
                settled = await population.settle(self.share.plan.scenario.settle)
                self._send_acked()
                return {"is": "settled", **settled}
            case "verify" if isinstance(population, Fleet):
                return {"is": "verified", "checks": await population.verify()}
            case "verify" if isinstance(population, Audience):
                checks = await population.verify(live_of(order), set(order["connected"]))
                return {"is": "verified", "checks": checks}
            case "end":
                return self._totals()
        return None

    def _send_acked(self) -> None:
        if self.share.audited and isinstance(self.population, Fleet):
            found = {"pings": self.population.acked(), "waiting": self.population.waiting()}
            self._send({"is": "acked", "number": self.share.number, **found, "unsure": self.population.unsure()})

    def _send_second(self, second: int) -> None:
        self.population.count()
        cpu = time.process_time()
        used, self._cpu = cpu - self._cpu, cpu
        report = {"is": "second", "second": second, "active": self.population.active, "cpu": used}
        self._send(report | self.recorder.take())

    def _totals(self) -> Message:
        """Returns what is left of the counts, and how the connections ended."""
        population = self.population
        population.count()
        apps: Sequence[App] = population.apps
        vendors = population.apps if isinstance(population, Fleet) else []
        return {
            "is": "ended",
            **self.recorder.take(),
            "sums": {
                "connections": sum(app.connections for app in apps),
                "unanswered": sum(vendor.waiting for vendor in vendors),
                "dropped": sum(vendor.dropped for vendor in vendors),
            },
            "errors": sum((app.errors for app in apps), Counter()),
            "closes": sum((app.closes for app in apps), Counter()),
            "rejected": sum((vendor.rejections() for vendor in vendors), Counter()),
            "gave_up": Counter(app.ended.code for app in apps if app.ended is not None),
            "violations": [line for app in apps for line in app.violations][:MAX_QUOTED],
            "incidents": [line for app in apps for line in app.incidents][:MAX_QUOTED],
            "summaries": population.summaries() if isinstance(population, Audience) else [],
            "stalest": population.stalest() if isinstance(population, Audience) else [],
        }


async def work(orders: AsyncIterator[Message], send: Send) -> None:
    """Carries out orders until they end."""
    async with asyncio.TaskGroup() as group:
        worker: Worker | None = None
        driving: asyncio.Task[None] | None = None
        async for order in orders:
            match order["do"]:
                case "prepare":
                    share = SHARE.validate_python(order["share"])
                    clock = await offset(share.plan.target, share.plan.identities[0], share.plan.secret)
                    worker = Worker(replace(share, offset=clock.ms), group, send)
                    send({"is": "ready", "offset_ms": clock.ms, "error_ms": clock.error_ms})
                case "start" if worker is not None:
                    driving = group.create_task(worker.drive(order["at"]))
                case "stop" if worker is not None:
                    worker.stopping.set()
                case _ if worker is not None:
                    if (answer := await worker.answer(order)) is not None:
                        send(answer)
                    if order["do"] == "end":
                        break
        if driving is not None:
            driving.cancel()
        if worker is not None:
            await worker.population.stop(STOP_WITHIN)


async def local() -> None:
    """Takes orders from standard input."""
    reader = asyncio.StreamReader(limit=LONGEST_MESSAGE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)

    async def orders() -> AsyncIterator[Message]:
        while line := await reader.readline():
            yield orjson.loads(line)

    await work(orders(), send_line)


def send_line(message: Message) -> None:
    """Writes one line to standard output."""
    sys.stdout.buffer.write(orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS) + b"\n")
    sys.stdout.buffer.flush()


async def remote(url: str, key: str, within: float) -> None:
    """Takes the orders of the coordinator at `url`, for one run; waits up to `within` s for it to be there."""
    until = time.monotonic() + within
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                socket = await session.ws_connect(
                    f"{url.rstrip('/')}/worker",
                    headers={"Authorization": f"Bearer {key}"},
                    max_msg_size=LONGEST_MESSAGE,
                    heartbeat=10.0,
                )
                break
            except aiohttp.WSServerHandshakeError as refused:
                raise RunFailed(
                    f"the coordinator answered {refused.status}; check --key, and that it still waits"
                ) from None
            except (aiohttp.ClientError, OSError) as failed:
                if time.monotonic() > until:
                    raise RunFailed(f"the coordinator at {url} does not answer: {failed!r}; is it running?") from None
                await asyncio.sleep(0.5)
        waiting: asyncio.Queue[Message | None] = asyncio.Queue()

        async def orders() -> AsyncIterator[Message]:
            async for message in socket:
                yield orjson.loads(message.data)

        async def transmit() -> None:
            while (message := await waiting.get()) is not None:
                await socket.send_bytes(orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS))

        sending = asyncio.create_task(transmit())
        try:
            await work(orders(), waiting.put_nowait)
        except BaseException as failure:
            waiting.put_nowait(failure_report(failure))
            raise
        finally:
            waiting.put_nowait(None)
            await asyncio.wait({sending}, timeout=STOP_WITHIN)
            sending.cancel()
            await socket.close()


def failure_report(failure: BaseException) -> Message:
    """Returns the report of a failure."""
    cause = first_cause(failure)
    return {"is": "failed", "cause": str(cause) if isinstance(cause, LoadtestError | ClientError) else repr(cause)}


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def first_cause(failure: BaseException) -> BaseException:
    """Returns the first error of a group that is no group itself."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


def raise_file_limit() -> None:
    """Raises the limit of open files to the highest allowed: every connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Runs one local worker; a failure is its last line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which orders a stop
    raise_file_limit()
    try:
        run_loop(local())
    except BaseException as failure:
        send_line(failure_report(failure))
        raise


if __name__ == "__main__":
    main()
