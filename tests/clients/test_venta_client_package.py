"""The Python client of app developers: packed, installed without the server, on each Python, typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import venta_client
from tests.support.clients import KIT
from tests.support.commands import STREAMER
from tests.support.paths import ROOT

CLIENT = ROOT / "clients" / "python"
PYTHONS = ("3.11", "3.12", "3.13")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
APP = """
import asyncio
from typing import assert_type

from venta_client import Card, CustomerClient, SqliteQueue, VendorClient, sync


async def main() -> None:
    async with CustomerClient("http://a", token=lambda refresh: None) as customer:
        watch = customer.watch({"center": {"lat": 1, "long": 2}, "radius": 3}, open=True)
        async for event in watch:
            assert_type(event.card, Card)
        async for vendors in watch.views():
            assert_type(vendors["v"]["lat"], float)
        async for groups in customer.counts({"polygon": [(1, 2), (3, 4), (5, 6)]}).views():
            assert_type(groups["g"]["count"], int)
    vendor = VendorClient("http://a", queue=SqliteQueue("file"), on_rejected=lambda ping, code, _: print(ping.lat))
    await vendor.when_stored(await vendor.ping(1, 2, heading=None))


with sync.VendorClient("http://a") as script:
    assert_type(script.ping(1, 2), int)
asyncio.run(main())
"""
"""An app's code; it is type-checked, not run."""

pytestmark = pytest.mark.timeout(600)


def interpreter(version: str) -> str | None:
    """Returns a Python of this version on this machine, if there is one."""
    found = map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in filter(None, (shutil.which(f"python{version}"), *found)):
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if said.stdout.startswith(f"Python {version}."):
            return candidate
    return None


@pytest.fixture(scope="module")
def packed(server_folder: Path) -> Path:
    """A folder with the files to publish: a source distribution, and the wheel built from it."""
    pytest.importorskip("hatchling", reason="builds a wheel as CI's environment does")
    folder = server_folder / "packed"
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t"]
    subprocess.run([*build, "sdist"], cwd=CLIENT, check=True, timeout=60)
    (source,) = folder.glob("venta_client-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    assert {"README.md", "CHANGELOG.md", "pyproject.toml", "venta_client"} <= {path.name for path in unpacked.iterdir()}
    subprocess.run([*build, "wheel"], cwd=unpacked, check=True, timeout=60)
    return folder


def test_the_metadata_is_complete(packed: Path) -> None:
    """An index refuses a package that is marked as private, and shows the metadata to developers."""
    (metadata,) = (packed / "source").glob("*/PKG-INFO")
    text = metadata.read_text()
    assert "Private ::" not in text
    for line in (
        f"Version: {venta_client.__version__}",
        "Requires-Python: >=3.11",
        "Typing :: Typed",
        "# The Python client",
    ):
        assert line in text


@pytest.mark.parametrize("version", PYTHONS)
def test_it_works_alone_on_each_python(version: str, packed: Path, tmp_path: Path) -> None:
    """The package must work without the server, and with other versions of Python."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    inside = str(tmp_path / "venv" / "bin" / "python")
    (wheel,) = packed.glob("venta_client-*.whl")
    ran(tmp_path, python, "-m", "venv", "--without-pip", "venv")  # our pip installs for it, in a third of the time
    install = ("--python", inside, "install", str(wheel))
    ran(tmp_path, sys.executable, *PIP, *install, unreachable="No matching distribution")
    (tmp_path / "app.py").write_text(APP)
    if version == PYTHONS[0]:  # the types are the same for all versions
        mypy = ("-m", "mypy", "--strict", "--python-version", version, "--python-executable", inside)
        ran(tmp_path, sys.executable, *mypy, "app.py")
    testee = shutil.copy(KIT / "testee.py", tmp_path)
    cases = [word for name in ("outlive", "exact again", "counts", "compressed", "4401") for word in ("--case", name)]
    ran(tmp_path, str(STREAMER), "conformance", *cases, "--within", "60", "--", inside, str(testee))


def ran(folder: Path, *command: str, unreachable: str | None = None) -> None:
    """Runs a command without our import path; skips the test if the package index is `unreachable`."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=300, check=False)
    if unreachable is not None and unreachable in done.stderr:
        pytest.skip("the package index can't be reached")
    assert done.returncode == 0, done.stdout + done.stderr
