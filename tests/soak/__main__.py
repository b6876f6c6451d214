"""`python -m tests.soak [--seconds 3600] [--share 0.5]`: exit status 0 if all values stayed flat, else 1."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak.course import BOUNDS, Course, Run, Soak
from tests.soak.trend import trends

SLACK = 6.0
"""Maximum growth of open files and tasks from before the first client to the end: connection pools fill up."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (3600)")
    parser.add_argument("--share", type=float, default=0.5, help="of a core that the server shall use (0.5)")
    parser.add_argument("--vendors", type=int, default=300)
    parser.add_argument("--watchers", type=int, default=300)
    parser.add_argument("--samples", type=Path, help="file for the samples, as JSON lines")
    chosen = parser.parse_args()
    course = Course(chosen.seconds, chosen.share, chosen.vendors, chosen.watchers, max(1.0, chosen.seconds / 240))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = Path(tempfile.mkdtemp(prefix="streamer-soak-"))
    folder.chmod(0o711)  # PostgreSQL's own user needs access
    try:
        run = asyncio.run(soaked(course, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if chosen.samples is not None:
        lines = [json.dumps({"at": at, **sample}) for at, sample in zip(run.times, run.samples, strict=True)]
        chosen.samples.write_text("\n".join(lines) + "\n")
    wrong = told(run)
    print(f"{'FAILED: ' + ', '.join(wrong) if wrong else 'all flat'}")
    sys.exit(1 if wrong else 0)


async def soaked(course: Course, folder: Path) -> Run:
    """Runs the soak test."""
    soak = Soak(course, folder)
    async with soak.prepared():
        return await soak.run()


def told(run: Run) -> list[str]:
    """Prints the trends and returns the values that were not flat."""
    wrong = []
    lasted = run.times[-1] if run.times else 0.0
    print(f"{lasted:.0f} s, {run.rate:.0f} pings/s, {run.share:.2f} cores of the server")
    for name, found in trends(run.times, run.samples, BOUNDS).items():
        verdict = "flat" if found.flat else "NOT FLAT"
        print(f"{name:22} {found.middle:10.2f} grew by {found.growth:8.2f}, may by {found.most:8.2f}: {verdict}")
        if not found.flat:
            wrong.append(name)
    for name, (before, after) in run.left.items():
        print(f"{name:22} {before:10.0f} before the first client, {after:.0f} after the last")
        if after > before + SLACK:
            wrong.append(f"{name} left")
    for line in run.violations[:10]:
        print(f"violation: {line}")
    return wrong + (["violations"] if run.violations else [])


if __name__ == "__main__":
    main()
