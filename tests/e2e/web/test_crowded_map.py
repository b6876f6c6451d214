"""A map of very many moving vendors, from the world to a street, in a real Chromium.

`STREAMER_CROWD=100000 pytest -s tests/e2e/web/test_crowded_map.py` measures what docs/map.md says.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import Any

import psutil
import pytest

from tests.conftest import Serve
from tests.e2e.web.test_live_map import opened
from tests.support.browser import EXECUTABLE, SKIP, Chromium, Tab
from tests.support.crowd import crowd
from tests.support.world import WARSAW

pytestmark = [pytest.mark.skipif(EXECUTABLE is None, reason=SKIP), pytest.mark.timeout(300)]

VENDORS = int(os.environ.get("STREAMER_CROWD", "12000"))
ZOOMS = [*range(2, 19), *range(17, 1, -3)] if "STREAMER_CROWD" in os.environ else [2, 7, 11, 14, 16, 11]
MOST_HELD = 3_000
"""Maximum number of vendors that a page may receive before it requests counts: MANY of map.js, and one message."""

BEGIN = """
() => {
  globalThis.frames_ = [];
  let before;
  const look = (now) => {
    if (before !== undefined) frames_.push(now - before);
    before = now;
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}
"""
VISIT = """
async ([lat, long, zoom]) => {
  const { map, fleet } = liveMap;
  const pause = () => new Promise((done) => setTimeout(done, 500));
  let held = 0;
  const watching = setInterval(() => (held = Math.max(held, fleet.movers.size)), 20);
  frames_.length = 0;
  map.setView([lat, long], zoom);
  for (const to of [[0, 0], [220, 60], [-220, -60]]) {
    map.panBy(to, { duration: 0.35 });
    await pause();
  }
  clearInterval(watching);
  return { held, frames: [...frames_] };
}
"""
SHOWN = """
(() => {
  const { map, bubbles, layer, view, fleet } = liveMap;
  const counted = bubbles.bubbles.reduce((sum, { count }) => sum + count, 0);
  const total = Number(document.getElementById("count-view").textContent.replace(/\\D/g, ""));
  // the panel counts a moment after the last frame, while vendors move in and out
  const settled = view?.fresh && !map._animatingZoom && Math.abs(total - (counted || layer.inView)) <= 0.02 * total;
  return settled && (counted > 0 ? bubbles.bubbles.some((one) => one.seen) : layer.inView > 0)
    ? { counted, bubbles: bubbles.bubbles.length, vendors: layer.inView, held: fleet.movers.size }
    : null;
})()
"""


async def test_from_the_world_to_the_street(endpoint: Chromium, serve: Serve, redis_url: str) -> None:
    """Bubbles split into vendors by zoom: the map is never empty, and no page receives a whole city."""
    server = await serve()
    async with AsyncExitStack() as stack:
        process = psutil.Process((await stack.enter_async_context(crowd(redis_url, VENDORS))).pid)
        tab: Tab = await stack.enter_async_context(opened(endpoint, f"{server.url}/#2/{WARSAW[0]}/{WARSAW[1]}"))
        shown = await tab.until(SHOWN, "the world")
        assert shown["counted"] == VENDORS
        await tab.run(BEGIN)
        frames: list[float] = []
        used: dict[str, float] = {}
        for zoom in ZOOMS:
            before = {**endpoint.cpu(), "crowd": sum(process.cpu_times()[:2])}
            visit: dict[str, Any] = await tab.run(VISIT, [*WARSAW, zoom])
            after = {**endpoint.cpu(), "crowd": sum(process.cpu_times()[:2])}
            used = {kind: used.get(kind, 0) + after[kind] - before.get(kind, 0) for kind in after}
            shown = await tab.until(SHOWN, f"bubbles or vendors at zoom {zoom}")
            assert max(visit["held"], shown["held"]) <= MOST_HELD
            assert bool(shown["counted"]) != bool(shown["held"]), "either bubbles or vendors"
            print(f"zoom {zoom}: {_of(visit['frames'])}, {shown}")
            frames += visit["frames"]
        print(f"{VENDORS} vendors: {_of(frames)}; CPU s: { {kind: round(value, 1) for kind, value in used.items()} }")
        assert tab.errors == []


def _of(frames: list[float]) -> str:
    ordered = sorted(frames)
    at = [ordered[int(len(ordered) * part)] for part in (0.5, 0.95, 0.99)]
    return f"{len(frames)} frames, ms at p50, p95, p99, worst: {', '.join(f'{one:.1f}' for one in [*at, ordered[-1]])}"
