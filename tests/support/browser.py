"""A real Chromium for tests: found in the folders of Debian, Ubuntu and others; each test has a new profile."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from time import monotonic, sleep
from typing import Any, NamedTuple

import psutil
from playwright.async_api import BrowserContext, Page, async_playwright

WITHIN = 30.0
"""Timeout of a page in seconds; a browser is slow during a whole test suite."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
EXECUTABLE = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
SKIP = "needs Chromium: install it (on Debian and Ubuntu the package chromium), or name one by CHROMIUM=/path/to/it"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--mute-audio",
    "--hide-scrollbars",
    "--font-render-hinting=none",
    # a page of another test must not be throttled in the background
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
)
STARTED_WITHIN = 60.0
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts a Chromium that ends with its parent, also if the tests are killed."""


class Chromium(NamedTuple):
    """A running Chromium: the URL of its debugging port, and its first process."""

    url: str
    pid: int

    def cpu(self) -> dict[str, float]:
        """Returns the CPU seconds of its processes by type: `renderer`, `gpu-process`, `browser`, …"""
        used: dict[str, float] = defaultdict(float)
        first = psutil.Process(self.pid)
        for process in [first, *first.children(recursive=True)]:
            with suppress(psutil.Error):
                kind = next((a[7:] for a in process.cmdline() if a.startswith("--type=")), "browser")
                times = process.cpu_times()
                used[kind] += times.user + times.system
        return used


def chromium() -> Iterator[Chromium]:
    """Runs a Chromium."""
    assert EXECUTABLE is not None
    folder = Path(tempfile.mkdtemp(prefix="streamer-chromium-"))
    process = Popen(
        [
            sys.executable,
            "-c",
            LAUNCHER,
            EXECUTABLE,
            *FLAGS,
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
        ],
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    try:
        port = folder / "DevToolsActivePort"
        until = monotonic() + STARTED_WITHIN
        while not (port.exists() and port.read_text().count("\n")):
            assert process.poll() is None, f"{EXECUTABLE} ended with {process.returncode}"
            assert monotonic() < until, f"{EXECUTABLE} did not start within {STARTED_WITHIN:g} s"
            sleep(0.05)
        yield Chromium(f"http://127.0.0.1:{port.read_text().splitlines()[0]}", process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Tab:
    """A page, and all errors in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    async def run(self, script: str, argument: Any = None) -> Any:
        """Evaluates an expression, or a function of the argument, in the page."""
        return await self.page.evaluate(script, argument)

    async def until(self, script: str, what: str, within: float = WITHIN) -> Any:
        """Waits until an expression is true in the page; polls, as the page's policy forbids evaluation in it."""
        until = monotonic() + within
        while not (found := await self.run(script)):
            assert monotonic() < until, f"not within {within} s: {what}; {await self.said()}"
            await asyncio.sleep(0.03)
        return found

    async def said(self) -> str:
        """A summary of the page for the message of a failure."""
        text = await self.run("document.body.innerText.replace(/\\s+/g, ' ').slice(0, 400)")
        return f"the page shows: {text!r}; errors: {self.errors}"

    async def text(self, id: str) -> str:
        """Returns the text of an element."""
        return str(await self.run("(id) => document.getElementById(id).textContent", id))

    async def live(self, within: float = WITHIN) -> None:
        """Waits until the map is live."""
        await self.until(
            "globalThis.liveMap?.view?.fresh && document.getElementById('status').dataset.state === 'live'",
            "live",
            within,
        )


@asynccontextmanager
async def browsing(chromium: Chromium, **options: Any) -> AsyncIterator[BrowserContext]:
    """A new profile, without cookies, storage or cache."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium.url)
        context = await browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(WITHIN * 1000)
        try:
            yield context
        finally:
            await context.close()
            await browser.close()
