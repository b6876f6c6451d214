"""The Expo example built as by a developer, and the client on React Native's URL and WebSocket."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.clients import NODE, NODE_VERSION
from tests.support.commands import STREAMER
from tests.support.npm import NPM, install, run
from tests.support.paths import ROOT

CASES = ("kept until", "same timestamps", "a view is", "4401: again", "bye")
"""The parts that depend on URL and WebSocket: a query, a subprotocol, messages, close codes."""

pytestmark = [
    pytest.mark.skipif(NPM is None or NODE_VERSION < 20, reason="needs npm, and Node 20 or newer"),
    pytest.mark.timeout(1800),
]


@pytest.fixture
async def app() -> AsyncIterator[Path]:
    """The example with its packages, next to the unchanged clients."""
    folder = Path(tempfile.mkdtemp(prefix="streamer-expo-"))
    ignore = shutil.ignore_patterns("node_modules")
    try:
        shutil.copytree(ROOT / "clients" / "js", folder / "clients" / "js", ignore=ignore)
        example = folder / "examples" / "expo"
        shutil.copytree(ROOT / "examples" / "expo", example, ignore=ignore)
        await install(example)
        yield example
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def test_the_example_and_the_client_on_react_native(app: Path) -> None:
    """The example must compile, and Metro must find all modules of the clients.

    React Native's URL can't be changed, its WebSocket has no bufferedAmount: an app would fail at its start. One test,
    as installing the packages takes half of the time.
    """
    await run(app, "npm", "run", "check")
    # minifying takes half of the time and finds nothing; the web example is minified
    await run(app, "npm", "run", "build", "--", "--no-minify", within=600)
    (bundle,) = (app / "dist").rglob("*.js")
    text = bundle.read_text()
    for name in ("VendorClient", "StorageQueue", "VentaProvider"):
        assert name in text

    assert NODE is not None
    program = (NODE, "--no-warnings", str(ROOT / "tests" / "js" / "react-native.cjs"), str(app))
    cases = [word for case in CASES for word in ("--case", case)]
    await run(app, str(STREAMER), "conformance", "--jobs", "2", "--within", "120", *cases, "--", *program, within=800)
