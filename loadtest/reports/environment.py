"""Where a run was made: CPU, kernel, versions, revision."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("venta-streamer", "aiohttp", "asyncpg", "orjson", "uvloop")


def environment() -> dict[str, Any]:
    """Returns what describes this machine and this checkout; what can't be found out is left out."""
    found: dict[str, Any] = {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "revision": revision(),
        "packages": {},
    }
    for name in PACKAGES:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            continue
    return {name: value for name, value in found.items() if value is not None}


def cpu() -> str | None:
    """Returns the model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def revision() -> str | None:
    """Returns the git revision of this code, with a + when files have changed since."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() or None
