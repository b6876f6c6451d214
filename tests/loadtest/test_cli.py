"""The load test's command line: wrong use ends with 2 and a way out, before anything is put under load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.cli.command import attended
from loadtest.cli.services import Services
from loadtest.clients.identity import Identity, enough, parse, read
from loadtest.clients.target import Target
from loadtest.clients.tokens import mint
from loadtest.errors import RunFailed, WrongUse

SECRET = "s" * 32
LINES = '{"vendorId":"v1","clerkId":"c1","name":"One"}\n{"vendorId":"v2","clerkId":"c2","name":"Two"}\n'


def run(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
    """Exit code and all that was said."""
    result = CliRunner(env={"STREAMER_JWT_SECRET": None, "TERMINAL_WIDTH": "1000"}).invoke(app, arguments, input=stdin)
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        (["replay"], "give either a trace file or --generate"),
        (["replay", "trace.csv.gz", "--generate", "5"], "give either a trace file or --generate"),
        (["replay", "nowhere.csv.gz"], "nowhere.csv.gz"),
        (["replay", "--generate", "5", "--speedup", "0"], "--speedup"),
        (["replay", "--generate", "5", "--secret", SECRET], "--vendors-file"),
        (["replay", "--generate", "5"], "STREAMER_JWT_SECRET"),
        (["replay", "--generate", "5", "--url", "http://8.8.8.8", "--secret", SECRET], "--i-own 8.8.8.8"),
        (["replay", "--generate", "5", "--url", "8080", "--secret", SECRET], "http://127.0.0.1:8080"),
        (["replay", "--generate", "5", "--data", "no-such-folder"], "services.json"),
        (
            ["replay", "--generate", "3", "--vendors-file", "-", "--secret", SECRET],
            "3 vendors are needed, standard input has 2",
        ),
        (["replay", "--generate", "2", "--vendors-file", "-", "--secret", SECRET, "--verify"], "--database"),
        (
            ["replay", "--generate", "2", "--vendors-file", "-", "--secret", SECRET, "--watch", "here"],
            "--watch is 'here'",
        ),
        (
            ["replay", "--generate", "2", "--vendors-file", "-", "--secret", SECRET, "--watch", "91,0,5"],
            "--watch is '91,0,5'",
        ),
        (["run", "lunch", "--secret", SECRET], "lunch-rush"),
        (["run", "festival"], "STREAMER_JWT_SECRET"),
        (["run", "festival", "--secret", SECRET], "--vendors-file"),
        (["run", "festival", "--secret", SECRET, "--verify"], "--database"),
        (["run", "festival", "--secret", SECRET, "--url", "http://8.8.8.8"], "--i-own 8.8.8.8"),
        (["run", "festival", "--secret", SECRET, "--part", "3/2"], "NUMBER/OF"),
        (["run", "festival", "--secret", SECRET, "--start-at", "5"], "within the next hour"),
        (["run", "festival", "--secret", SECRET, "--stage", "jump:3"], "'ramp', 'hold', 'spike' or 'storm'"),
        (["run", "festival", "--secret", SECRET, "--set", "city.x=1"], "city.x"),
        (["run", "festival", "--secret", SECRET, "--trace", "nowhere.csv"], "nowhere.csv"),
        (["find-max", "festival", "--secret", SECRET, "--vary", "all"], "both, vendors or customers"),
        (["compare", "nowhere.json", "nowhere.json"], "nowhere.json"),
        (["merge", "pyproject.toml", "pyproject.toml"], "can't be read as a report"),
        (["ingest", "--secret", SECRET], "--database"),
        (["ingest", "--secret", SECRET, "--part", "some"], "there is no part 'some'"),
        (["ingest", "--seconds", "100000"], "--seconds"),
        (
            ["live", "--secret", SECRET, "--vendors-file", "-", "--vendors", "2", "--pid", "999999999"],
            "no process 999999999",
        ),
        (["live", "--secret", SECRET, "--vendors-file", "-", "--vendors", "2", "--idle", "5"], "--pid"),
        (["live", "--secret", "short", "--vendors-file", "-", "--vendors", "2", "--watchers", "1"], "HS256 needs 32"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_to_give(arguments: list[str], said: str) -> None:
    """Nobody should have to read the source to start a run."""
    code, output = run(*arguments, stdin=LINES)
    assert said in output.replace("│ ", "")
    assert code == 2


def test_a_server_that_is_not_there_ends_with_1() -> None:
    """A run that could not be carried out is not wrong use, and not a success."""
    code, output = run(
        *["replay", "--generate", "2", "--vendors-file", "-", "--secret", SECRET, "--url", "http://127.0.0.1:1"],
        stdin=LINES,
    )
    assert "is the server up?" in output
    assert code == 1


async def answering(*statuses: int) -> tuple[dict[str, Any], int]:
    """A run's report on a server whose /readyz answers so, one after the other, and how often the run was begun."""
    left, begun = list(statuses), 0

    async def ready(request: web.Request) -> web.Response:
        return web.Response(status=left.pop(0), text="broker-publisher died")

    async def measured() -> dict[str, Any]:
        nonlocal begun
        begun += 1
        return {"run": "live", "ok": True}

    served = web.Application()
    served.router.add_get("/readyz", ready)
    async with TestServer(served, host="127.0.0.1") as server:
        assert server.port is not None
        try:
            return await attended(Target("127.0.0.1", server.port, False), measured()), begun
        except RunFailed as failed:
            return {"failed": str(failed)}, begun


async def test_a_server_that_is_not_whole_is_never_reported_as_ok() -> None:
    """With its bus dead a server is cheap and fast: such numbers must not pass for its cost."""
    report, begun = await answering(503)
    assert "503: broker-publisher died" in report["failed"]
    assert begun == 0
    report, begun = await answering(200, 503)
    assert (report["ok"], report["ready"], begun) == (False, "503: broker-publisher died", 1)
    report, begun = await answering(200, 200)
    assert (report["ok"], report["ready"], begun) == (True, True, 1)


def test_vendors_are_read_as_the_seed_command_prints_them(tmp_path: Path) -> None:
    """Its other lines don't count, a broken one is named."""
    path = tmp_path / "vendors"
    path.write_text("seeding\n" + LINES + LINES)
    assert enough(read(str(path)), 2, "it") == [Identity("v1", "c1", "One"), Identity("v2", "c2", "Two")]
    with pytest.raises(WrongUse, match="3 vendors are needed, it has 2"):
        enough(read(str(path)), 3, "it")
    with pytest.raises(WrongUse, match="it line 1"):
        parse(['{"vendorId":"v1"}'], "it")


def test_a_data_folder_tells_all_a_run_needs(tmp_path: Path) -> None:
    """`--data` alone is enough against a development server."""
    (tmp_path / "services.json").write_bytes(orjson.dumps({"http": "h", "database": "d", "redis": "r"}))
    assert Services.read(tmp_path) == Services("h", "d", "r", None)
    (tmp_path / "jwt-secret").write_text(f"{SECRET}\n")
    assert Services.read(tmp_path).secret == SECRET
    (tmp_path / "services.json").write_text("{}")
    with pytest.raises(WrongUse, match=r"streamer dev"):
        Services.read(tmp_path)


def test_tokens_are_what_the_server_takes() -> None:
    """`sub` is the owner, and the time is given, so that a run with a skewed clock is seen here."""
    assert jwt.decode(mint("clerk", SECRET, 1000.7, 60), SECRET, ["HS256"], options={"verify_exp": False}) == {
        "sub": "clerk",
        "iat": 1000,
        "exp": 1060,
    }
