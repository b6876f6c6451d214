"""The Python client as a package of its own: whoever installs it has no server beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import venta_client
from tests.support.paths import ROOT

CLIENT = ROOT / "clients" / "python"


def test_it_is_built_typed_and_imported_without_the_server(tmp_path: Path) -> None:
    """An app developer gets it alone, and his type checker takes it."""
    pytest.importorskip("hatchling", reason="builds a wheel as CI's environment does")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=CLIENT, check=True, timeout=60
    )
    (wheel,) = tmp_path.glob("venta_client-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "venta_client/py.typed" in names
    assert all(name.startswith("venta_client") for name in names)
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import venta_client; print(venta_client.__file__)"
    said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.startswith(str(wheel))
    assert venta_client.__version__ in wheel.name
