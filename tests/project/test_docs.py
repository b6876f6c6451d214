"""Runs the snippets of the documentation, and checks that it names only existing things."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grimp
import orjson
import pytest

from streamer.accounts.tokens import make_token
from streamer.protocol import asyncapi, messages
from streamer.protocol.bounds import Bounds
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, VendorApp, described, eventually, now_ms
from tests.support.paths import ROOT

PAGES = (
    "docs/vendor-app.md",
    "docs/customer-app.md",
    "docs/load-testing.md",
    "docs/feed.md",
    "docs/conformance.md",
    "docs/from-nestjs.md",
    "docs/architecture.md",
    "docs/guarantees.md",
    "clients/js/README.md",
    "clients/python/README.md",
)
HERE = (52.2297, 21.0122)
NODE = shutil.which("node")
NODE_VERSION = (
    int(subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout[1:].split(".")[0])
    if NODE
    else 0
)
RECEIVED_SCHEMAS = {**described(asyncapi.VENDOR_RECEIVES), **described(asyncapi.CUSTOMER_RECEIVES)}


class Snippet(NamedTuple):
    """A fenced block: where it stands, what it is, what is in it."""

    page: str
    number: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}, {self.language} block {self.number}"


def snippets(page: str) -> list[Snippet]:
    """Every fenced block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("```") % 2 == 0
    return [Snippet(page, n, *found) for n, found in enumerate(re.findall(r"```([^\n]*)\n(.*?)```", text, re.S))]


EXPECTED_OUTPUT: dict[tuple[str, int], str] = {
    ("docs/vendor-app.md", 1): "eyJ",
    ("docs/vendor-app.md", 2): "1 stored",
    ("docs/vendor-app.md", 3): "1 stored",
    ("docs/vendor-app.md", 7): '"type":"ack","seq":3',
    ("docs/vendor-app.md", 10): '"stored":2',
    ("docs/customer-app.md", 1): "Test Vendor moved",
    ("docs/customer-app.md", 2): "moved Test Vendor",
    ("docs/customer-app.md", 7): '"distance":',
    ("docs/customer-app.md", 8): '"type":"update"',
    ("docs/load-testing.md", 1): "quiet-town",
    ("docs/load-testing.md", 2): "quiet-town.json",
    ("docs/conformance.md", 0): "PASS  vendor",
    ("docs/feed.md", 0): "ctestvendor",
    ("docs/feed.md", 1): "search-index misses 0",
    ("docs/from-nestjs.md", 4): 'vendor_location_changed {"vendorId":"ctestvendor',
    ("clients/js/README.md", 0): "moved Test Vendor",
    ("clients/js/README.md", 1): "1 wait\n0 wait",
    ("clients/python/README.md", 0): "stored",
    ("clients/python/README.md", 1): "stored",
    ("clients/python/README.md", 2): "entered Test Vendor",
}
"""What a program of the pages says when it works."""
SETUP_CODE = {
    ("docs/from-nestjs.md", 4): """
const old = gateway(process.argv[2], null, (name, data) => console.log(name, JSON.stringify(data)));
old.updateLocation({ ne: { lat: 52.3, lng: 21.1 }, sw: { lat: 52.2, lng: 20.9 } });
""",
    ("clients/js/README.md", 0): """
const session = { token: () => null };
const map = Object.fromEntries(
  ["add", "move", "redraw", "remove"].map((name) => [name, (card) => console.log(`${name}d`, card.name)]),
);
""",
    ("clients/js/README.md", 1): """
const session = { token: () => process.argv[3] };
const badge = { set textContent(size) { console.log(size, "wait"); } };
const position = { coords: { latitude: 52.2297, longitude: 21.0122, heading: null, speed: 4 }, timestamp: Date.now() };
Object.defineProperty(globalThis, "navigator", { value: { geolocation: { watchPosition: (tell) => tell(position) } } });
""",
}
"""The app that a part of one is shown without: what it calls, or who calls it."""
TESTED_ELSEWHERE = {"make run\n": "integration/dev/test_development.py"}
"""Commands that have a test of their own."""


@contextmanager
def folder() -> Iterator[Path]:
    """A place where programs may import the clients, as an app that has installed them."""
    with tempfile.TemporaryDirectory(prefix="docs-") as name:
        path = Path(name)
        (path / "node_modules" / "@venta").mkdir(parents=True)
        (path / "node_modules" / "@venta" / "client").symlink_to(ROOT / "clients" / "js")
        yield path


async def says(where: Path, expected: str, program: list[str], environment: dict[str, str]) -> str:
    """Start a program and wait until it has said what is expected, or has ended without."""
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=where,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    out = b""
    try:
        async with asyncio.timeout(60):
            while expected.encode() not in out and (data := await process.stdout.read(65536)):
                out += data
    except TimeoutError:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what a shell has started
        await process.communicate()
    assert expected.encode() in out, f"it should have said {expected!r}, not:\n{out.decode()}"
    return out.decode()


async def run(snippet: Snippet, url: str, services: dict[str, str], token: str, data: Path | None = None) -> None:
    """Run a snippet, or hold it against what it must be; fails for one that nothing is known of.

    `data`: the folder with the `.venta` of a `streamer dev`, in which its reader would be.
    """
    expected = EXPECTED_OUTPUT.get((snippet.page, snippet.number))
    arguments = [services["redis"]] if snippet.page == "docs/feed.md" else [url, token]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients' / 'python'}",
        **({} if data else {"STREAMER_JWT_SECRET": SECRET}),
    }
    with folder() as where:
        # what `streamer dev` leaves in its data folder for the load test
        (where / "services.json").write_bytes(orjson.dumps(services))
        (where / "jwt-secret").write_text(SECRET)
        environment |= {"DATA": str(where), "REPORT": str(where / "quiet-town")}
        if snippet.language == "json":
            message = orjson.loads(snippet.code)
            if message["type"] in RECEIVED_SCHEMAS:
                RECEIVED_SCHEMAS[message["type"]].validate(message)
            elif message["type"] in asyncapi.VENDOR_SENDS:
                read: Any = messages.decode_vendor(snippet.code, now_ms(), None, Bounds())
                assert not getattr(read, "rejected", None)
            else:
                messages.decode_watch(snippet.code, Bounds())
        elif snippet.language == "json gateway":
            assert set(orjson.loads(snippet.code)) == {"event", "data"}  # the other server's, for comparison
        elif snippet.language == "python behaviour":
            assert snippet.page == "docs/load-testing.md"  # a run of the load test in test_run.py uses it
        elif snippet.language == "mermaid":
            assert snippet.page == "docs/architecture.md"  # held against the code below
        elif snippet.language == "sh" and any(snippet.code.startswith(known) for known in TESTED_ELSEWHERE):
            assert all((ROOT / "tests" / test).exists() for test in TESTED_ELSEWHERE.values())
        elif snippet.language == "sh" and expected is not None:
            code = snippet.code.replace(". .venv/bin/activate\n", "").replace("http://127.0.0.1:8080", url)
            if "curl" in code and shutil.which("curl") is None:
                return
            await says(data or ROOT, expected, ["sh", "-euc", code], environment)
        elif snippet.language == "python" and expected is not None:
            await says(where, expected, [sys.executable, "-u", "-c", snippet.code, *arguments], environment)
        elif snippet.language == "js" and expected is not None:
            if NODE_VERSION < 20:
                return
            code = snippet.code.replace("https://streamer.example", url)
            (where / "app.mjs").write_text(SETUP_CODE.get(snippet[:2], "") + code, encoding="utf-8")
            flags = [] if NODE_VERSION >= 22 else ["--experimental-websocket", "--no-warnings"]
            await says(where, expected, [str(NODE), *flags, "app.mjs", *arguments], environment)
        else:
            pytest.fail(f"{snippet}: nothing says how to run it; put what it says into EXPECTED_OUTPUT")


@pytest.mark.parametrize("page", [page for page in PAGES if any(one.language != "mermaid" for one in snippets(page))])
async def test_every_snippet_is_run(page: str, serve: Serve, database_url: str, redis_url: str) -> None:
    """A snippet that was correct becomes wrong for every reader when the code changes."""
    (one,) = await seed.seed(database_url)
    running = await serve(feed="on", feed_interval=0.1)
    token = make_token(SECRET, one.clerk_id, 600)
    async with VendorApp(running.url, one.clerk_id) as vendor:

        async def drive() -> None:
            step = 0
            while True:
                step += 1
                await vendor.ping(HERE[0] + step / 1e5, HERE[1], timestamp=now_ms())
                await asyncio.sleep(0.2)

        await vendor.ping(*HERE, timestamp=now_ms())
        await vendor.acked(1)
        feed = running.server.feed
        await eventually(lambda: feed is not None and feed.written > 0, "an entry of the feed")
        driving = asyncio.create_task(drive())
        try:
            services = {"http": running.url, "database": database_url, "redis": redis_url}
            for snippet in snippets(page):  # one after the other: a page may go on from what it did before
                await run(snippet, running.url, services, token)
        finally:
            driving.cancel()
            await asyncio.gather(driving, return_exceptions=True)


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    """A page that was moved takes its links along."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def test_every_page_is_found_from_the_readme() -> None:
    """A reader finds a page only by a link."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES[:8]:
        assert f"({page})" in readme, f"README.md has no link to {page}"


def test_every_test_that_is_promised_exists() -> None:
    """A guarantee without a test is only a claim."""
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    failures = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", text + failures)
    assert len(named) > 50
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in tests, f"a page names {file}::{name}, which is not there"
    for row in re.findall(r"^\|(.*)\|$", text, re.M):
        guarantee, tests_of_it = row.split("|")
        assert "::test_" in tests_of_it or guarantee.strip() in ("guarantee", "---"), f"no test for: {guarantee}"


def test_every_setting_that_is_named_exists() -> None:
    """A setting that is misspelt in a page does nothing, silently."""
    from streamer.settings import Settings, variable

    known = set(map(variable, Settings.model_fields))
    for page in [*PAGES, "README.md"]:
        for name in re.findall(r"STREAMER_[A-Z_]+", (ROOT / page).read_text(encoding="utf-8")):
            assert name in known, f"{page} names {name}"


def test_the_picture_is_the_code() -> None:
    """A reader finds every package in the picture, and every arrow in the code."""
    (picture,) = [one.code for one in snippets("docs/architecture.md") if "flowchart" in one.code]
    packages = {path.parent.name for path in (ROOT / "streamer").glob("*/__init__.py")} | {"app", "lifecycle"}
    shown = {name for name in re.findall(r"\w+", re.sub(r"\[[^\]]*\]", "", picture)) if name in packages}
    assert shown == packages, f"docs/architecture.md does not show {sorted(packages - shown)}"
    graph = grimp.build_graph("streamer", cache_dir=None)
    wired = {name.split(".")[1] for name in graph.find_modules_directly_imported_by("streamer.app")}
    for line in picture.splitlines():
        chain = re.split(r"\s+(-->|-\.->)\s+", re.sub(r"[\[(]+[^\])]*[\])]+", "", line.strip()))
        for left, arrow, right in zip(chain[::2], chain[1::2], chain[2::2], strict=False):
            if left not in packages or right not in packages:
                continue  # from or to what is outside
            if arrow == "-->":
                importing, imported = f"streamer.{left}", f"streamer.{right}"
                assert graph.direct_import_exists(importer=importing, imported=imported, as_packages=True), (
                    f"docs/architecture.md draws {left} --> {right}, but {left} does not import {right}"
                )
            else:
                assert {left, right} <= wired, f"{left} -.-> {right} is not wired in app"


def test_versions_agree() -> None:
    """The packages of one repository are of one contract."""
    package = orjson.loads((ROOT / "clients" / "js" / "package.json").read_bytes())
    assert package["type"] == "module"
    for name in package["files"]:
        # the CommonJS form is made by `npm pack`
        assert name == "venta.cjs" or (ROOT / "clients" / "js" / name).exists()
    project = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text(encoding="utf-8"))
    import venta_client

    assert package["version"] == venta_client.__version__
    assert project["project"]["name"] == "venta-client"
