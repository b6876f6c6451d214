"""Logs for operators and auditors: lines have their connection and no secrets, and are limited in number."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from streamer.accounts.tokens import make_token
from streamer.operations import logs
from streamer.operations.logs import MAX_REPEATS, RepeatFilter, masked
from streamer.storage import seed
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle, eventually
from tests.support.commands import Command
from tests.support.issuer import EC, RSA, signed

TOKEN = make_token(SECRET, "clerk_test_user", 86_400)
NEEDED = {"STREAMER_JWT_SECRET": SECRET, "STREAMER_PORT": "0", "STREAMER_WATCH_AUTH": "optional"}


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Captures a test's log, and restores the logging of tests afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_kinds_of_loggers_write_the_same_lines(stream: io.StringIO) -> None:
    """A log shipper needs JSON lines only, also from other libraries and for tracebacks."""
    logs.configure(form="json", stream=stream)
    structlog.contextvars.bind_contextvars(connection="ab-1")
    structlog.get_logger().info("made partitions", partitions=["locations_20310101"])
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error handling %s", "request")
    ours, theirs = lines(stream)
    assert (ours["event"], ours["level"], ours["partitions"]) == ("made partitions", "info", ["locations_20310101"])
    assert (theirs["event"], theirs["level"]) == ("Error handling request", "error")
    assert "ValueError: odd" in theirs["exception"]
    for line in (ours, theirs):
        assert line["connection"] == "ab-1"
        assert line["pid"] > 0
        assert line["timestamp"].endswith("Z")


def test_for_people(stream: io.StringIO) -> None:
    """One line that begins with the event; a traceback without the values of local variables."""
    logs.configure(form="people", stream=stream)
    try:
        hidden = "a-local-value"
        raise ValueError(len(hidden))
    except ValueError:
        structlog.get_logger().exception("a task died", task="ticker")
    said = stream.getvalue()
    assert re.search(r"a task died +task=ticker", said)
    assert "ValueError: 13" in said
    assert "a-local-value" not in said.replace('hidden = "a-local-value"', "")
    assert "\x1b" not in said, "no colours where nobody sees them"


def test_levels(stream: io.StringIO) -> None:
    """Lines below the configured level are not written, neither the server's nor those of libraries."""
    logs.configure(form="json", level="error", stream=stream)
    structlog.get_logger().warning("no")
    logging.getLogger("aiohttp").warning("no")
    structlog.get_logger().error("yes")
    logging.getLogger("aiohttp").error("yes")
    assert [line["event"] for line in lines(stream)] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        (f"GET /v1/watch?token={TOKEN}&x=1", TOKEN),
        (f"Authorization: Bearer {TOKEN}", TOKEN),
        (f"Sec-WebSocket-Protocol: streamer.v1, bearer.{TOKEN}", TOKEN),
        ("Authorization: Basic dmVuZG9yOnRvcC1zZWNyZXQ=", "dmVuZG9yOnRvcC1zZWNyZXQ="),
        ("GET /v1/osmand?id=7&token=opaque-token HTTP/1.1", "opaque-token"),
        ("postgresql://venta:pass%2Fword@db:5432/venta_db", "pass%2Fword"),
        ("redis://:hunter2@cache/0", "hunter2"),
        (json.dumps({"event": "odd", "token": "opaque-token"}), "opaque-token"),
        (json.dumps({"event": json.dumps({"type": "auth", "token": "opaque-token"})}), "opaque-token"),
        ("password='hunter2'", "hunter2"),
        ("/v1/vendors/nearby?lat=52.2297&long=21.0122", "52.2297"),
        ("/v1/vendors/nearby?lat=52.2297&long=-21.0122", "21.0122"),
        (json.dumps({"event": json.dumps({"type": "ping", "lat": 52.2297, "long": 21.0122})}), "52.2297"),
        ("Ping(seq=1, timestamp=2, lat=52.2297, long=21.0122)", "21.0122"),
        ("/v1/osmand?id=7&lat=52,2297&lon=21,0122", "2297"),
        (json.dumps({"event": json.dumps({"type": "ping", "lat": 52, "long": "21,0122"})}), "0122"),
        ('lat must be -90 to 90 degrees, not "52,2297"', "52,2297"),
        (json.dumps({"event": "rejected", "cause": 'long must be -180 to 180 degrees, not "21,0122"'}), "0122"),
        (json.dumps({"event": "rejected", "cause": "lat must be -90 to 90 degrees, not -95.12345"}), "95.12345"),
    ],
)
def test_secrets_are_not_logged(line: str, secret: str) -> None:
    """Tokens, passwords and positions are masked in all forms."""
    said = masked(None, "info", line)
    assert secret not in said
    assert "***" in said
    if line.startswith("{"):
        assert json.loads(said)["event"]


@pytest.mark.parametrize(
    "token", [make_token("x" * 32, "user_1", 60), signed(EC["e1"]), signed(RSA["r1"]), signed(EC["e1"]) + "."]
)
def test_whatever_looks_like_a_token_is_taken_out(token: str) -> None:
    """A token in an unexpected place of a line is masked."""
    for line in (token, f"GET /v1/vendor?x={token}&x=1", f'{{"a":"{token}"}}', f"b'bearer.{token}\\x00'"):
        told = masked(None, "info", line)
        assert "***" in told
        assert not any(part in told for part in token.split(".") if part)
        assert told.replace("***", "") == line.replace(token.rstrip("."), "")


def test_a_long_line_is_no_burden() -> None:
    """Clients control parts of lines: the search for secrets in a long line must not block the event loop."""
    began = time.process_time()
    for piece in ("eyJ", "eyJaaaaaaaaaa.", "a://", "token ", "lat ", "bearer "):
        masked(None, "info", piece * 30_000)
    assert time.process_time() - began < 5, "quadratic would be minutes"


@pytest.mark.parametrize(
    "line",
    [
        "PostgreSQL at 127.0.0.1:5432/venta_db can't be reached: [Errno 111] Connect call failed",
        "a token is needed, as Authorization: Bearer or ?token=",
        "the last latency was 12.5 ms",
        "serving on http://127.0.0.1:8080",
        "keyJack.b",
        "eyJ.x",
        "a key.eyJoin",
    ],
)
def test_what_is_no_secret_stays(line: str) -> None:
    """Masking must not remove harmless text, which an operator needs."""
    assert masked(None, "info", line) == line


@given(st.lists(st.sampled_from("abc"), max_size=200), st.integers(1, 5))
def test_a_storm_is_summed_up(texts: list[str], most: int) -> None:
    """The written lines and the number of omitted ones must add up to the number of events."""
    told: list[str] = []
    now = 0.0
    repeats = RepeatFilter(told.append, most=most, window=3600.0, clock=lambda: now)
    written = [text for text in texts if repeats.passes("info", text)]
    repeats.flush()
    for text in "abc":
        count = texts.count(text)
        assert written.count(text) == min(most, count)
        spared = [line for line in told if line.endswith(f"[info] {text}")]
        assert spared == ([f"and {count - most:,} more like it within 0 s: [info] {text}"] if count > most else [])
    assert texts.count("a") <= most or repeats.passes("info", "a"), "after that it is written again"


def test_the_count_of_repeated_lines_is_logged_at_the_end(stream: io.StringIO) -> None:
    """The end of a storm of lines is logged when it is over, not when the next one begins."""
    told = threading.Event()
    repeats = RepeatFilter(lambda text: told.set(), most=1, window=0.2)
    assert [repeats.passes("error", "away") for _ in range(3)] == [True, False, False]
    assert told.wait(20)
    assert repeats.passes("error", "away")


def test_slow_lines_are_no_storm() -> None:
    """Ten lines a minute are always written."""
    now = [0.0]
    repeats = RepeatFilter(lambda _: None, window=10.0, clock=lambda: now[0])
    for _ in range(100):
        now[0] += 6.0
        assert repeats.passes("info", "now and then")


def test_libraries_repeats_too(stream: io.StringIO) -> None:
    """Without a limit, a scanner that sends invalid requests makes aiohttp log a traceback for each."""
    repeats = logs.configure(form="json", stream=stream)
    for n in range(1000):
        logging.getLogger("aiohttp.server").error("Error handling request %s", n)
        structlog.get_logger().error("redis refused a write", key=n)
    said = [line["event"] for line in lines(stream)]
    assert len(said) == 2 * MAX_REPEATS
    assert said.count("redis refused a write") == MAX_REPEATS
    repeats.flush()
    sums = [line["event"] for line in lines(stream) if line.get("summary")]
    assert len(sums) == 2
    assert all(f"and {1000 - MAX_REPEATS} more like it" in line for line in sums)


async def test_a_server_s_log(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """Every line about a socket has its connection; none has a token or a position, even at level debug."""
    await seed.seed(database_url)
    command = Command(
        "serve", folder=tmp_path, DATABASE_URL=database_url, REDIS_URL=redis_url, STREAMER_LOG_LEVEL="debug", **NEEDED
    )
    async with command:
        url = await command.url()
        async with CustomerApp(url) as customer, VendorApp(url, "clerk_test_user") as app:
            await customer.watch("w", circle(52.22975, 21.01225, 1000))
            await app.ping(52.22975, 21.01225)
            await app.acked(1)
            await app.send({"type": "ping", "lat": 95.12345, "long": 21.01225})
            await app.expect("reject")
        async with VendorApp(url, "clerk_nobody") as stranger:
            await stranger.closed()
        async with aiohttp.ClientSession() as session:
            near = f"{url}/v1/vendors/nearby?lat=52.22975&long=21.01225&token={TOKEN}"
            async with session.get(near) as response:
                assert response.status == 200
            async with session.get(f"{url}/v1/vendors/nearby?lat=52.22975&token=eyJno.good.one") as response:
                assert response.status >= 400
        await eventually(lambda: command.err.count("connection ended") == 3, "three ends in the log")
    told = [json.loads(line) for line in command.err.splitlines() if line.startswith("{")]
    ended = [line for line in told if line["event"] == "connection ended"]
    assert len({line["connection"] for line in ended}) == 3
    assert all(line.get("connection") for line in told if line["event"] in ("closing", "connection ended"))
    assert [line["level"] for line in ended if line["code"] >= 4000] == ["info"]
    for secret in ("52.22975", "21.01225", "95.12345", TOKEN, "eyJno.good.one", SECRET):
        assert secret not in command.err
