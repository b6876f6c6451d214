"""One worker process of a run: is told what to do in JSON lines on standard input, and tells what it counted.

In come {"do":"prepare","share":…}, {"do":"start","at":ms}, {"do":"stop"}, {"do":"settle"}, {"do":"verify",…},
{"do":"end"}. Out go {"is":"ready"}, one {"is":"second",…} each second, {"is":"driven"} when the stages are over, and an
answer to each settle, verify and end. The end of standard input is the end of the worker: an orphan loads nobody.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from typing import Any

import orjson

from loadtest.engine.audience import Audience, live_of
from loadtest.engine.city import City
from loadtest.engine.event_loop import first_cause, raise_file_limit, run_loop
from loadtest.engine.fleet import Fleet
from loadtest.engine.share import Share
from loadtest.engine.stages import Course
from loadtest.errors import LoadtestError
from loadtest.measure.recorder import Tally
from venta_client.errors import ClientError

LONGEST_LINE = 512 << 20
STOP_WITHIN = 10.0


class Worker:
    """The apps of one share, from `start` to `end`."""

    def __init__(self, share: Share, group: asyncio.TaskGroup) -> None:
        scenario = share.scenario
        course = Course(scenario.stages)
        place = scenario.city
        city = City(place.lat, place.long, place.size(scenario.vendors.count), place.block)
        self.tally = Tally()
        self.share = share
        self.stopping = asyncio.Event()
        made = Fleet if share.kind == "vendors" else Audience
        self.apps: Fleet | Audience = made(share, city, course, self.tally, self.now, group)
        self._cpu = 0.0

    def now(self) -> float:
        """The server's clock, epoch ms."""
        return time.time() * 1000 + self.share.offset

    async def drive(self, start: float) -> None:
        """Wait for the start, go through the stages, and report every second."""
        await asyncio.sleep(max(0.0, (start - self.now()) / 1000))
        self._cpu = time.process_time()
        driving = asyncio.create_task(self.apps.run(start, self.stopping))
        try:
            second = 0
            while not driving.done():
                await asyncio.wait({driving}, timeout=max(0.001, (start - self.now()) / 1000 + second + 1))
                passed = int((self.now() - start) / 1000)
                if driving.done() or passed > second:
                    # seconds that were slept through are told as the last of them
                    self.report(second if driving.done() else passed - 1)
                    second = passed
            await driving
        finally:
            driving.cancel()

    def report(self, second: int) -> None:
        """Tell what one second brought."""
        self.apps.count()
        cpu = time.process_time()
        used, self._cpu = cpu - self._cpu, cpu
        tell({"is": "second", "second": second, "active": self.apps.active, "cpu": used, **self.tally.take()})

    async def settle(self) -> dict[str, Any]:
        """What watchers must see, once all is acked."""
        found = await self.apps.settle(self.share.scenario.settle) if isinstance(self.apps, Fleet) else {}
        return {"is": "settled", **found}

    async def verify(self, order: dict[str, Any]) -> dict[str, Any]:
        """Compare with the database, or the views with the truth."""
        if isinstance(self.apps, Fleet):
            return {"is": "verified", "kind": "vendors", **await self.apps.verify()}
        checked = await self.apps.verify(live_of(order), set(order["connected"]))
        return {"is": "verified", "kind": "customers", **checked}

    def totals(self) -> dict[str, Any]:
        """What is told at the end: all that is left of the counts, and how the connections went."""
        apps = self.apps.trucks if isinstance(self.apps, Fleet) else self.apps.customers
        self.apps.count()
        errors, closes, rejected, ended = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        for app in apps:
            errors += app.errors
            closes += Counter({str(code): count for code, count in app.closes.items()})
            if app.ended is not None:
                ended[str(app.ended.code)] += 1
        sums: Counter[str] = Counter(connections=sum(app.connections for app in apps))
        if isinstance(self.apps, Fleet):
            for truck in self.apps.trucks:
                rejected += truck.rejections()
                sums["unanswered"] += truck.waiting
                sums["dropped"] += truck.dropped
        return {
            "is": "ended",
            **self.tally.take(),
            "sums": dict(sums),
            "errors": dict(errors),
            "closes": dict(closes),
            "rejected": dict(rejected),
            "gave_up": dict(ended),
            "violations": [line for app in apps for line in app.violations][:20],
            "cpu": time.process_time(),
        }


def tell(message: dict[str, Any]) -> None:
    """One line to whoever started this process."""
    sys.stdout.buffer.write(orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS) + b"\n")
    sys.stdout.buffer.flush()


async def orders() -> asyncio.StreamReader:
    """Standard input as lines."""
    reader = asyncio.StreamReader(limit=LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    return reader


async def work() -> None:
    """Do as told until the end."""
    reader = await orders()
    async with asyncio.TaskGroup() as group:
        worker: Worker | None = None
        driving: asyncio.Task[None] | None = None
        while line := await reader.readline():
            order = orjson.loads(line)
            match order["do"]:
                case "prepare":
                    worker = Worker(Share.from_json(order["share"]), group)
                    tell({"is": "ready"})
                case "start":
                    assert worker is not None
                    driving = group.create_task(drive(worker, order["at"]))
                case "stop":
                    assert worker is not None
                    worker.stopping.set()
                case "settle":
                    assert worker is not None
                    tell(await worker.settle())
                case "verify":
                    assert worker is not None
                    tell(await worker.verify(order))
                case "end":
                    assert worker is not None
                    tell(worker.totals())
                    break
        if driving is not None:
            driving.cancel()
        if worker is not None:
            await worker.apps.stop(STOP_WITHIN)


async def drive(worker: Worker, start: float) -> None:
    """Through the stages, and say so."""
    await worker.drive(start)
    tell({"is": "driven"})


def main() -> None:
    """Run one worker; what went wrong is its last line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started this, which says `stop`
    raise_file_limit()
    try:
        run_loop(work())
    except BaseException as failure:
        cause = first_cause(failure)
        tell({"is": "failed", "cause": str(cause) if isinstance(cause, LoadtestError | ClientError) else repr(cause)})
        raise


if __name__ == "__main__":
    main()
