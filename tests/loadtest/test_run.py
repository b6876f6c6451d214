"""Whole runs of `python -m loadtest run` against a real server, and that a wrong view can't pass."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from loadtest import RunFailed
from loadtest.clients.target import Identity, Target
from loadtest.engine.population import Plan
from loadtest.engine.run import Run
from loadtest.options import RunOptions, ScenarioOptions, chosen
from loadtest.reports.several import merge
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET
from tests.support.paths import DATA, ROOT


class Load:
    """One run of the command; its report is taken from standard output."""

    def __init__(self, url: str, database_url: str, *arguments: str, command: str = "run") -> None:
        self._database_url = database_url
        self._command = ["-m", "loadtest", command, *arguments, "--url", url, "--database", database_url]

    async def start(self) -> None:
        """Starts it."""
        # how late the generator itself is on a busy machine is not what these tests are about
        self._command += ["--secret", SECRET, "--json", "--set", "late_ms=60000"]
        self._command += ["--threshold", "freshness_max_ms=false", "--threshold", "refused=false"]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self._command),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def ended(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, report and what was said."""
        out, err = await asyncio.wait_for(self.process.communicate(), 300)
        assert self.process.returncode is not None
        return self.process.returncode, json.loads(out) if out else {}, err.decode()


SHORT = ("--stage", "ramp:0.5:1", "--stage", "hold:1.5", "--warmup", "0.5")


async def test_a_run_with_storms_and_lossy_phones_is_stored_once_and_shown_truly(
    serve: Serve, database_url: str
) -> None:
    """The purpose of the load test: movement, backlogs and cut connections, and at the end every check passes."""
    running = await serve()
    load = Load(
        *(running.url, database_url, "flapping-network", "--vendors", "30", "--customers", "40"),
        *("--workers", "2", "--warmup", "1", "--sampled", "40"),
        *("--set", "vendors.phones={lossy=0.6, up=1, down=1}", "--set", "customers.dwell=0.5"),
        *("--set", "customers.phones={lossy=0.3, up=1, down=0.5}", "--set", "customers.asleep=0.5"),
        *("--set", "vendors.movements=[{kind='driving', every=0.25}]", "--set", "customers.slow=0.2"),
        *("--set", "customers.deflate=true"),
        *("--stage", "ramp:1:1", "--stage", "storm:2", "--stage", "spike:1:0.5"),
    )
    await load.start()
    code, report, said = await load.ended()
    assert code == 0, said
    totals = report["totals"]
    assert totals["sent"] == totals["acked"] == report["checks"]["stored"]["rows"] > 200
    for name in ("backlog", "losses", "cuts", "pans", "sleeps", "positions"):
        assert totals[name] > 0, name
    assert report["workers"] == 4
    assert report["checks"]["views"]["watchers"] >= 20
    assert report["checks"]["views"]["cards"] > 100
    assert report["delays"]["watch"]["count"] > 0
    assert report["figures"]["bytes_per_position"] > 0
    assert report["generator"]["cpu"]["vendors"] > 0
    assert report["generator"]["cpu"]["customers"] > 0


async def test_ctrl_c_ends_with_the_report_so_far(serve: Serve, database_url: str) -> None:
    """Who has seen enough gets what was measured; exit code 130 says that it is not the whole run."""
    running = await serve()
    load = Load(
        *(running.url, database_url, "quiet-town", "--vendors", "3", "--customers", "3"),
        *("--stage", "ramp:0.5:1", "--stage", "hold:300", "--warmup", "0"),
        *("--set", "vendors.movements=[{kind='parked', every=0.3}]"),
    )
    await load.start()
    await first_vendor(database_url)
    await asyncio.sleep(1.2)
    load.process.send_signal(signal.SIGINT)
    code, report, said = await load.ended()
    assert code == 130, said
    assert report["interrupted"]
    assert 0 < report["seconds"] < 300
    assert report["totals"]["acked"] == report["checks"]["stored"]["rows"] > 0
    assert len(report["series"]) < 100


async def test_what_was_measured_outlives_the_server(serve: Serve, database_url: str) -> None:
    """A server that goes away under load is what such a test is for: there is a report, and it says so."""
    running = await serve()
    load = Load(
        *(running.url, database_url, "quiet-town", "--vendors", "3", "--customers", "3"),
        *("--stage", "ramp:0.5:1", "--stage", "hold:4", "--warmup", "0", "--set", "settle=1"),
        *("--set", "vendors.movements=[{kind='parked', every=0.3}]"),
    )
    await load.start()
    await first_vendor(database_url)
    await running.server.drain()
    code, report, said = await load.ended()
    assert code == 1
    assert report["totals"]["acked"] > 0
    assert report["figures"]["errors"] > 0
    assert "the server was not ready after the run" in said


def trace_file(folder: Path, vehicles: int, seconds: int) -> Path:
    """A trace of some vehicles with a fix a second."""
    rows = [
        f"b{vehicle},2026-01-01T08:00:{second:02},{52.2 + vehicle / 1000},{21.0 + second / 10_000:.4f}"
        for second in range(seconds)
        for vehicle in range(vehicles)
    ]
    path = folder / "trace.csv"
    path.write_text("vehicle,timestamp,lat,long\n" + "\n".join(rows) + "\n")
    return path


async def test_two_machines_drive_one_trace(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """Each machine drives its own half of the vehicles and customers; merged, the reports are the whole trace."""
    running = await serve()
    seeded = await seed.seed(database_url, 10)
    changes = ["late_ms=60000", "thresholds.freshness_max_ms=false"]
    scenario, driven = chosen(
        ScenarioOptions("replay", customers=8, change=changes), RunOptions(trace=trace_file(tmp_path, 10, 3))
    )
    assert scenario.seconds == 3
    reports: list[dict[str, Any]] = []
    for wait in (3, 15, 60):  # how long workers take to be ready depends on the machine
        plan = Plan(
            target=Target.parse(running.url),
            secret=SECRET,
            scenario=scenario,
            name="replay",
            identities=[Identity(*one) for one in seeded],
            database=database_url,
            verify=True,
            trace=driven,
            parts=2,
            start_at=time.time() + wait,
        )
        try:
            runs = [Run(replace(plan, part=part), lambda *_: None) for part in (1, 2)]
            reports = await asyncio.gather(*(one.carry_out() for one in runs))
            break
        except RunFailed:
            continue
    assert sum(report["totals"]["acked"] for report in reports) == 30
    both = merge(reports)
    assert both["ok"], both["reasons"]
    assert both["checks"]["stored"]["rows"] == 30
    assert both["compared"] == {"vendors": 10, "vendors_of": 10, "customers": 8, "customers_of": 8}
    assert max(entry["vendors"] for entry in both["series"]) == 10
    assert both["settings"]["city"]["lat"] == pytest.approx(52.205, abs=0.01)


TRACE = DATA / "warsaw_buses_all_20min_2024-02-19.csv.gz"


@pytest.mark.skipif(not TRACE.exists(), reason="the Warsaw trace is not beside the project")
async def test_the_warsaw_burst_is_stored_once_and_shown_truly(serve: Serve, database_url: str) -> None:
    """1,546 real buses, 20 minutes in 15 seconds: every fix of the trace is sent, acked and stored."""
    running = await serve()
    load = Load(running.url, database_url, "replay", "--trace", str(TRACE), "--speedup", "80", "--seed", "1")
    await load.start()
    _, report, said = await load.ended()
    # 1,546 connections in a moment and 7,000 pings a second may be too much for a busy machine, but not for the truth
    for name in ("stored", "positions", "views"):
        assert report["checks"][name]["ok"], said
    assert report["totals"]["sent"] == report["totals"]["acked"] == report["checks"]["stored"]["rows"] == 108_912
    assert report["compared"]["customers"] == 20


async def test_a_coordinator_and_workers_of_other_machines_make_one_run(serve: Serve, database_url: str) -> None:
    """One command for the coordinator and one for each worker; a wrong key is turned away; the live page shows it."""
    running = await serve()
    load = Load(
        *(running.url, database_url, "quiet-town", "--vendors", "8", "--customers", "6", *SHORT),
        *("--stage", "hold:4", "--set", "vendors.movements=[{kind='walking', every=0.5}]"),
        *("--listen", "127.0.0.1:0", "--remote", "2", "--key", "the key of this run"),
    )
    await load.start()
    assert load.process.stderr is not None
    port = int((await load.process.stderr.readline()).decode().strip().rstrip("/").rsplit(":", 1)[1])
    workers = [await worker(port, key) for key in ("a wrong key", "the key of this run", "the key of this run")]
    _, refused = await workers[0].communicate()
    assert b"401" in refused
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            async with session.get(f"http://127.0.0.1:{port}/") as answer:
                page = await answer.text()
            if "<svg" in page:
                break
            await asyncio.sleep(0.1)
    assert 'http-equiv="refresh"' in page
    code, report, said = await load.ended()
    assert code == 0, said
    assert [await one.wait() for one in workers] == [1, 0, 0]
    assert report["workers"] == 2
    assert report["totals"]["acked"] == report["checks"]["stored"]["rows"] > 20
    assert report["checks"]["views"]["watchers"] == 6


async def worker(port: int, key: str) -> asyncio.subprocess.Process:
    """A worker as on another machine."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", "worker", f"http://127.0.0.1:{port}", "--key", key),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_stalled_phones_and_storms_are_not_counted_as_faults(serve: Serve, database_url: str) -> None:
    """A reader that stalls is closed by design, a cut connection comes back: neither is an error of the server's."""
    running = await serve()
    load = Load(
        *(running.url, database_url, "stalled-readers", "--vendors", "10", "--customers", "12", "--warmup", "1"),
        *("--stage", "hold:2", "--stage", "storm:3", "--set", "vendors.movements=[{kind='walking', every=0.2}]"),
    )
    await load.start()
    code, report, said = await load.ended()
    assert code == 0, said
    assert report["totals"]["cuts"] > 15
    assert report["delays"]["recovery"]["count"] > 15
    assert report["checks"]["views"]["watchers"] == 8


async def test_full_batches_are_sent_as_fast_as_acks_allow(serve: Serve, database_url: str) -> None:
    """The closed loop: every ping of every batch is stored, and PostgreSQL alone is measured beside it."""
    running = await serve(connection_cost=1000.0, user_cost=1000.0, heavy_cost=1000.0)
    load = Load(
        *(running.url, database_url, "ingest", "--vendors", "4", "--stage", "hold:3", "--warmup", "0.5"),
        *("--bare-copy", "1000"),
    )
    await load.start()
    code, report, said = await load.ended()
    assert code == 0, said
    assert report["totals"]["sent"] == report["totals"]["acked"] == report["checks"]["stored"]["rows"]
    assert report["totals"]["sent"] >= 4 * 4 * 500
    assert report["figures"]["bare_copy_rows_per_s"] > 0


TRAM = re.findall(r"```python behaviour\n(.*?)```", (ROOT / "docs/load-testing.md").read_text("utf-8"), re.S)[0]
WAITING = """
from loadtest.behaviour import CustomerBehaviour

class Waiting(CustomerBehaviour):
    seen = 0

    def on_start(self):
        self.app.look_at(52.2297, 21.0122, 500.0)
        return 0.1

    def on_tick(self):
        if self.seen > 3:
            self.app.follow(self.vendor_ids[0])
        return 0.2

    def on_update(self, update):
        self.seen += len(update.get("moved", []))
"""


async def test_vendors_and_customers_behave_as_your_own_class_says(
    serve: Serve, database_url: str, tmp_path: Path
) -> None:
    """A scenario beside a Python file: the tram drives, those who wait see it and follow it."""
    (tmp_path / "tram.py").write_text(TRAM + WAITING)
    (tmp_path / "tram.toml").write_text(
        'title = "Tram"\nwarmup = 0\nvendors = { count = 2, behaviour = "tram.py:Tram" }\n'
        'customers = { count = 3, behaviour = "tram.py:Waiting" }\nstages = [{ kind = "hold", seconds = 4 }]\n'
    )
    running = await serve()
    load = Load(running.url, database_url, str(tmp_path / "tram.toml"))
    await load.start()
    code, report, said = await load.ended()
    assert code == 0, said
    assert report["totals"]["follows"] >= 3
    assert report["checks"]["views"]["cards"] >= 6


async def test_the_highest_load_of_a_real_server_is_searched_for(serve: Serve, database_url: str) -> None:
    """One step against a real server is run, judged and reported like those of the searches in test_find_max."""
    running = await serve()
    load = Load(
        *(running.url, database_url, "quiet-town", "--vendors", "10", "--customers", "10", "--steps", "1"),
        *(
            "--seconds",
            "2",
            "--threshold",
            "ack_p50_ms<=60000",
            "--set",
            "vendors.movements=[{kind='walking', every=0.5}]",
        ),
        *("--set", "customers.radius=[3000, 4000]"),
        command="find-max",
    )
    await load.start()
    code, report, said = await load.ended()
    assert code == 0, said
    assert (report["kept_scale"], report["broken_scale"]) == (1.0, None)
    assert report["figures"]["max_pings_per_s"] > 10
    assert report["best"]["checks"]["protocol"]["ok"]


async def first_vendor(database_url: str) -> tuple[str, str]:
    """The id and owner of the first vendor whose ping is stored, waiting for it."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(60):
            while True:
                row = await connection.fetchrow(
                    'SELECT v.id, u."clerkId" FROM locations l JOIN vendors v ON v.id = l."vendorId"'
                    ' JOIN users u ON u.id = v."userId" LIMIT 1'
                )
                if row is not None:
                    return row[0], row[1]
                await asyncio.sleep(0.05)
    finally:
        await connection.close()
