"""The npm packages as an app developer gets them: packed, installed, typed, small, with React hooks that follow."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.paths import ROOT

HERE = ROOT / "tests" / "js"
CLIENTS = ROOT / "clients" / "js"
NPM = shutil.which("npm")
MOST_CORE = 8_000
"""Bytes of the core client, minified and gzipped."""

pytestmark = [pytest.mark.skipif(NPM is None, reason="needs npm"), pytest.mark.timeout(400)]


async def run(folder: Path, *command: str, within: float = 180) -> str:
    """Runs a command in a folder; returns what it printed, and fails with that when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), within)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{command}: {out.decode()}"
    return out.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[Path]:
    """An app's folder with both packages installed from what `npm pack` made."""
    folder = Path(tempfile.mkdtemp(prefix="streamer-npm-"))
    try:
        sources = folder / "sources"
        shutil.copytree(CLIENTS, sources, ignore=shutil.ignore_patterns("node_modules"))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        try:
            await run(folder, "npm", "ci", "--no-audit", "--no-fund", "--prefer-offline")
        except (AssertionError, TimeoutError) as failed:
            if "network" in str(failed) or "ENOTFOUND" in str(failed) or isinstance(failed, TimeoutError):
                pytest.skip("the npm registry can't be reached")
            raise
        packed = [
            json.loads(await run(where, "npm", "pack", "--json", "--silent", "--pack-destination", str(folder)))
            for where in (sources, sources / "react")
        ]
        # npm writes a list, since version 12 an object by package
        names = [next(iter(one.values() if isinstance(one, dict) else one))["filename"] for one in packed]
        await run(folder, "npm", "install", "--no-save", "--no-audit", "--no-fund", "--prefer-offline", *names)
        for name in ("react.test.mjs", "packed.cjs", "types.ts"):
            shutil.copy(HERE / name, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_packages_are_complete(app: Path) -> None:
    """A file that `files` forgets is missing for every app; a private package can't be published."""
    client = app / "node_modules" / "@venta" / "client"
    manifest = json.loads((client / "package.json").read_text())
    assert "private" not in manifest
    for form in manifest["exports"].values():
        for file in [form] if isinstance(form, str) else form.values():
            assert (client / file).is_file(), file
    assert {"README.md", "CHANGELOG.md"} <= {path.name for path in client.iterdir()}
    assert (app / "node_modules" / "@venta" / "react" / "README.md").is_file()


@pytest.mark.asyncio(loop_scope="module")
async def test_commonjs_and_es_modules_are_the_same(app: Path) -> None:
    """Jest and older bundlers `require` the package; a name that one form lacks is a crash at the customer's."""
    await run(app, "node", "packed.cjs")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_types_hold_under_strict(app: Path) -> None:
    """An app in TypeScript compiles against the types as they are, a browser's coordinates included."""
    await run(
        app,
        *("npx", "tsc", "--noEmit", "--strict", "--skipLibCheck", "false", "--target", "es2022"),
        *("--lib", "es2022,dom", "--module", "nodenext", "--moduleResolution", "nodenext", "types.ts"),
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_the_core_stays_small(app: Path) -> None:
    """A map for phones on bad links can't afford a large client."""
    await run(app, "npx", "esbuild", "node_modules/@venta/client/venta.js", "--minify", "--outfile=core.js")
    assert len(gzip.compress((app / "core.js").read_bytes(), 9)) <= MOST_CORE


@pytest.mark.asyncio(loop_scope="module")
async def test_the_react_hooks(app: Path) -> None:
    """A component shows the vendors of its area, moves the watch with it, and leaves none behind."""
    await run(app, "node", "--test", "react.test.mjs")


async def test_the_web_example_builds(app: Path, tmp_path: Path) -> None:
    """A developer starts from the example: it must compile against the client as it is now."""
    shutil.copytree(CLIENTS, tmp_path / "clients" / "js", ignore=shutil.ignore_patterns("node_modules"))
    example = tmp_path / "examples" / "web"
    shutil.copytree(ROOT / "examples" / "web", example, ignore=shutil.ignore_patterns("node_modules", "dist"))
    await run(example, "npm", "ci", "--no-audit", "--no-fund", "--prefer-offline")
    await run(example, "npm", "run", "build")
    assert list((example / "dist" / "assets").glob("*.js"))
