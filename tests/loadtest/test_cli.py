"""The load test's command line: wrong use ends with 2 and a way out, before anything is put under load."""

from __future__ import annotations

from pathlib import Path

import jwt
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from loadtest import RunFailed, WrongUse
from loadtest.__main__ import app
from loadtest.clients.target import Identity, Target, enough, mint, parse_vendors, read_vendors
from loadtest.engine import scenario as scenarios
from loadtest.engine.population import Plan
from loadtest.engine.run import Run
from loadtest.options import Services

SECRET = "s" * 32
TWO = ("run", "quiet-town", "--vendors", "2", "--secret", SECRET, "--no-verify", "--vendors-file", "-")
LINES = '{"vendorId":"v1","clerkId":"c1","name":"One"}\n{"vendorId":"v2","clerkId":"c2","name":"Two"}\n'


def run(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
    """Exit code and all that was said."""
    result = CliRunner(env={"STREAMER_JWT_SECRET": None, "TERMINAL_WIDTH": "1000"}).invoke(app, arguments, input=stdin)
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        (["run", "lunch", "--secret", SECRET], "lunch-rush"),
        (["run", "festival"], "STREAMER_JWT_SECRET"),
        (["run", "festival", "--secret", SECRET], "--no-verify"),
        (["run", "festival", "--secret", SECRET, "--no-verify"], "--vendors-file"),
        (["run", "festival", "--secret", "short"], "HS256 needs 32"),
        (["run", "festival", "--data", "no-such-folder"], "services.json"),
        (["run", "festival", "--secret", SECRET, "--url", "8080"], "http://127.0.0.1:8080"),
        (
            ["run", "quiet-town", "--secret", SECRET, "--no-verify", "--vendors-file", "-"],
            "20 vendors are needed, standard input has 2",
        ),
        ([*TWO, "--pid", "999999999"], "no process 999999999"),
        ([*TWO, "--threshold", "fast"], "watch_p99_ms<=200"),
        ([*TWO, "--remote", "1"], "--listen HOST:PORT"),
        ([*TWO, "--remote", "9", "--listen", "127.0.0.1:0"], "makes 2 workers"),
        ([*TWO, "--listen", "here"], "HOST:PORT"),
        ([*TWO, "--set", "vendors.behaviour=nowhere.py:Truck"], "file.py:Class"),
        (["run", "festival", "--secret", SECRET, "--url", "http://8.8.8.8"], "--i-own 8.8.8.8"),
        (["run", "festival", "--secret", SECRET, "--part", "3/2"], "NUMBER/OF"),
        (["run", "festival", "--secret", SECRET, "--start-at", "5"], "within the next hour"),
        (["run", "festival", "--secret", SECRET, "--start-at", "5", "--repeat", "2"], "one --start-at per command"),
        (["run", "festival", "--secret", SECRET, "--stage", "jump:3"], "'ramp', 'hold', 'spike' or 'storm'"),
        (["run", "festival", "--secret", SECRET, "--set", "city.x=1"], "city.x"),
        (["run", "festival", "--secret", SECRET, "--trace", "nowhere.csv"], "nowhere.csv"),
        (["find-max", "festival", "--secret", SECRET, "--vary", "all"], "is not one of 'both', 'vendors', 'customers'"),
        (["find-max", *TWO[1:]], "needs a threshold on a delay"),
        (["capacity", "--vendors", "9000000", "--customers", "1", "--moving", "1"], "more regions are needed"),
        (["compare", "nowhere.json", "nowhere.json"], "nowhere.json"),
        (["merge", "pyproject.toml", "pyproject.toml"], "can't be read as a report"),
    ],
)
def test_wrong_use_exits_with_2_and_names_the_remedy(arguments: list[str], said: str) -> None:
    """Nobody should have to read the source to start a run."""
    code, output = run(*arguments, stdin=LINES)
    assert said in output.replace("│ ", "")
    assert code == 2


def test_a_server_that_is_not_there_ends_with_1() -> None:
    """A run that could not be carried out is not wrong use, and not a success."""
    code, output = run(*TWO, "--url", "http://127.0.0.1:1", stdin=LINES)
    assert "is the server running?" in output
    assert code == 1


async def test_a_server_that_is_not_ready_is_not_measured() -> None:
    """Without Redis a server is cheap and fast: such numbers must not pass for its cost."""

    async def ready(request: web.Request) -> web.Response:
        return web.Response(status=503, text="the subscriber died")

    served = web.Application()
    served.router.add_get("/readyz", ready)
    async with TestServer(served, host="127.0.0.1") as server:
        assert server.port is not None
        plan = Plan(
            Target("127.0.0.1", server.port, False), SECRET, scenarios.load("quiet-town"), "x", [Identity("v", "c", "")]
        )
        with pytest.raises(RunFailed, match="503: the subscriber died"):
            await Run(plan, lambda *_: None).carry_out()


def test_every_command_is_in_the_help() -> None:
    """An engineer finds every command by `--help`."""
    _, output = run("--help")
    for name in ("run", "find-max", "compare", "merge", "report", "scenarios", "worker", "capacity"):
        assert f" {name} " in output
    code, output = run("scenarios")
    assert code == 0
    assert "zoomed-out" in output


def test_vendors_are_read_as_the_seed_command_prints_them(tmp_path: Path) -> None:
    """Its other lines don't count, a broken one is named."""
    path = tmp_path / "vendors"
    path.write_text("seeding\n" + LINES + LINES)
    assert enough(read_vendors(str(path)), 2, "it") == [Identity("v1", "c1", "One"), Identity("v2", "c2", "Two")]
    with pytest.raises(WrongUse, match="3 vendors are needed, it has 2"):
        enough(read_vendors(str(path)), 3, "it")
    with pytest.raises(WrongUse, match="it line 1"):
        parse_vendors(['{"vendorId":"v1"}'], "it")


def test_a_data_folder_provides_the_settings_of_a_run(tmp_path: Path) -> None:
    """`--data` alone is enough against a development server."""
    (tmp_path / "services.json").write_bytes(orjson.dumps({"http": "h", "database": "d", "redis": "r"}))
    assert Services.read(tmp_path) == Services("h", "d", "r", None)
    (tmp_path / "jwt-secret").write_text(f"{SECRET}\n")
    assert Services.read(tmp_path).secret == SECRET
    (tmp_path / "services.json").write_text("{}")
    with pytest.raises(WrongUse, match=r"streamer dev"):
        Services.read(tmp_path)


def test_the_server_accepts_the_tokens() -> None:
    """`sub` is the owner, and the time is given, so that a run with a skewed clock is seen here."""
    assert jwt.decode(mint("clerk", SECRET, 1000.7, 60), SECRET, ["HS256"], options={"verify_exp": False}) == {
        "sub": "clerk",
        "iat": 1000,
        "exp": 1060,
    }
