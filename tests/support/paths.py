"""Paths of the checkout and the shared data next to it, and temporary folders of a test run."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
"""Real traces; tests that need one are skipped without it."""
PREFIX = "streamer-test-run-"


@contextmanager
def run_folder(parent: Path) -> Iterator[Path]:
    """Yields a folder in `parent` for this process; removes it at the end, and those of killed processes."""
    for folder in parent.glob(f"{PREFIX}*"):
        if (lock := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # another process may have removed it between these two lines
        if (lock := _lock(folder)) is not None and folder.exists():
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Returns a lock on a folder, held until it is closed or this process ends; None if another process has it."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None  # removed, or another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
