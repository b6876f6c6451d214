"""The npm packages of app developers: packed, installed, typed, small, and their React hooks."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.npm import NPM, install, run
from tests.support.paths import ROOT

HERE = ROOT / "tests" / "js"
CLIENTS = ROOT / "clients" / "js"
MOST_CORE = 8_000
"""Maximum size of the core client in bytes, minified and gzipped."""

PAGES = ("docs/vendor-app.md", "docs/customer-app.md", "clients/js/README.md", "clients/js/react/README.md")
CODE = re.compile(r"```(jsx?)\n(.*?)```", re.S)
GLOBALS = """
declare const process: { argv: string[] };
declare const session: { token(asked?: { refresh: boolean }): string };
declare const map: Record<"add" | "move" | "redraw" | "remove", (card: import("@venta/client").Card) => void>;
declare const badge: { textContent: unknown };
"""
"""Declarations that the pages' snippets use."""

pytestmark = [pytest.mark.skipif(NPM is None, reason="needs npm"), pytest.mark.timeout(400)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[Path]:
    """An app's folder with both packages, installed from the files of `npm pack`."""
    folder = Path(tempfile.mkdtemp(prefix="streamer-npm-"))
    try:
        sources = folder / "sources"
        shutil.copytree(CLIENTS, sources, ignore=shutil.ignore_patterns("node_modules"))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        await install(folder)
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
    """A file that `files` lacks would be missing in all apps; a private package can't be published."""
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
    """Jest and older bundlers `require` the package; a name that is missing in one form would crash apps."""
    await run(app, "node", "packed.cjs")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_types_hold_under_strict(app: Path) -> None:
    """An app in TypeScript compiles against the types, also with a browser's coordinates."""
    await run(
        app,
        *("npx", "tsc", "--noEmit", "--strict", "--skipLibCheck", "false", "--target", "es2022"),
        *("--lib", "es2022,dom", "--module", "nodenext", "--moduleResolution", "nodenext", "types.ts"),
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_the_snippets_of_the_pages_hold_under_strict(app: Path) -> None:
    """Snippets must compile unchanged in a TypeScript app."""
    folder = app / "snippets"
    folder.mkdir()
    (folder / "globals.d.ts").write_text(GLOBALS)
    for page in PAGES:
        for number, (language, code) in enumerate(CODE.findall((ROOT / page).read_text(encoding="utf-8"))):
            name = f"{page.replace('/', '-')}-{number}.{'mts' if language == 'js' else 'tsx'}"
            (folder / name).write_text(code)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) >= 6, names
    await run(
        folder,
        *("npx", "tsc", "--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom", "--jsx", "react-jsx"),
        *("--module", "nodenext", "--moduleResolution", "nodenext", *names),
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_the_core_stays_small(app: Path) -> None:
    """A map for phones on bad links needs a small client."""
    await run(app, "npx", "esbuild", "node_modules/@venta/client/venta.js", "--minify", "--outfile=core.js")
    assert len(gzip.compress((app / "core.js").read_bytes(), 9)) <= MOST_CORE


@pytest.mark.asyncio(loop_scope="module")
async def test_the_react_hooks(app: Path) -> None:
    """A component shows the vendors of its area, moves its watch with the area, and closes it when unmounted."""
    await run(app, "node", "--test", "react.test.mjs")


def test_an_install_in_the_repository_leaves_nothing_untracked() -> None:
    """Installed packages of a client or an example in the checkout must be ignored by git."""
    made = [f"{folder}/node_modules/x" for folder in ("clients/js", "examples/web", "examples/expo", "tests/js")]
    made += [f"clients/js/{name}" for name in ("package-lock.json", "react/package-lock.json", "venta.cjs")]
    made += [f"examples/{name}/x" for name in ("web/dist", "expo/dist", "expo/.expo")]
    asked = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True, check=False)
    if asked.returncode == 128:
        pytest.skip("this is no checkout")
    assert asked.stdout.splitlines() == made


async def test_the_web_example_builds(app: Path, tmp_path: Path) -> None:
    """The example must compile against the current client."""
    shutil.copytree(CLIENTS, tmp_path / "clients" / "js", ignore=shutil.ignore_patterns("node_modules"))
    example = tmp_path / "examples" / "web"
    shutil.copytree(ROOT / "examples" / "web", example, ignore=shutil.ignore_patterns("node_modules", "dist"))
    await install(example)
    await run(example, "npm", "run", "build")
    assert list((example / "dist" / "assets").glob("*.js"))
