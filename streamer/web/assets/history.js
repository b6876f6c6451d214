/** A vendor's stored positions: the trail of the last half hour, and today as a replay with a slider. */

import { bearing, project } from "./fleet.js";
import { by, clock, element, set, text } from "./page.js";

const PAGE = 2_000;
const PAGES = 15;
/** The speed of a replay, as a multiple of real time. */
const FAST = 120;
/** A pause between two positions longer than this, ms, is not interpolated. */
const PAUSE = 10 * 60_000;

/** Thrown if the history is visible only to the vendor. */
export class OwnerOnly extends Error {}

/** Returns the stored positions since a time, oldest first; partial if the network fails. */
export async function read(vendorId, from, token) {
  const found = [];
  let cursor = null;
  for (let page = 0; page < PAGES; page += 1) {
    const query = new URLSearchParams({ from: Math.round(from), limit: PAGE, ...(cursor === null ? {} : { cursor }) });
    const headers = { Accept: "application/json", ...(token === null ? {} : { Authorization: `Bearer ${token}` }) };
    const answer = await fetch(`/v1/vendors/${encodeURIComponent(vendorId)}/locations?${query}`, { headers }).catch(() => null);
    if (answer?.status === 401 || answer?.status === 403) throw new OwnerOnly();
    if (!answer?.ok) break;
    const { locations, next } = await answer.json();
    found.push(...locations);
    cursor = next ?? null;
    if (cursor === null) break;
  }
  return found;
}

export function point({ lat, long, timestamp }) {
  return [...project(lat, long), timestamp];
}

/** Returns a vendor's position at a time: {x, y, heading}. */
export function place(locations, time) {
  let [low, high] = [0, locations.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (locations[middle].timestamp <= time) low = middle;
    else high = middle - 1;
  }
  const before = locations[low];
  const after = locations[Math.min(low + 1, locations.length - 1)];
  const gap = after.timestamp - before.timestamp;
  const part = gap === 0 || gap > PAUSE ? 0 : Math.min(1, Math.max(0, (time - before.timestamp) / gap));
  const [x, y] = project(before.lat, before.long);
  const [toX, toY] = project(after.lat, after.long);
  const moved = before.lat !== after.lat || before.long !== after.long;
  const heading = moved ? bearing(before.lat, before.long, after.lat, after.long) : null;
  return { x: x + (toX - x) * part, y: y + (toY - y) * part, heading };
}

/** The slider under a card; shows the vendor's past position on the layer. */
export class Replay {
  constructor(layer, locations, onClose) {
    this.layer = layer;
    this.locations = locations;
    this.onClose = onClose;
    const [first, last] = [locations[0].timestamp, locations.at(-1).timestamp];
    this.slider = element("input", { type: "range", id: "replay-time", min: first, max: last, step: 1000, value: last, "aria-label": text("replay.label") });
    this.time = element("output", { id: "replay-clock" });
    this.play = element("button", { type: "button", className: "secondary", id: "replay-play", textContent: text("replay.play") });
    const close = element("button", { type: "button", className: "secondary", id: "replay-close", textContent: text("replay.close") });
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.play.addEventListener("click", () => (this.running ? this.pause() : this.run()));
    close.addEventListener("click", () => this.close());
    by("replay").replaceChildren(element("div", { className: "when" }, this.time, this.slider), this.play, close);
    by("replay").hidden = false;
    layer.trail = locations.map(point);
    this.show(last);
  }

  show(time) {
    this.now = time;
    this.layer.ghost = place(this.locations, time);
    this.layer.changed();
    this.slider.value = time;
    set(this.time, "textContent", new Date(time - clock.offset).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit" }));
  }

  run() {
    const last = this.locations.at(-1).timestamp;
    if (this.now >= last) this.now = this.locations[0].timestamp;
    this.play.textContent = text("replay.pause");
    let before = performance.now();
    const step = (now) => {
      this.show(Math.min(last, this.now + (now - before) * FAST));
      before = now;
      if (this.now >= last) this.pause();
      else this.running = requestAnimationFrame(step);
    };
    this.running = requestAnimationFrame(step);
  }

  pause() {
    cancelAnimationFrame(this.running);
    this.running = undefined;
    this.play.textContent = text("replay.play");
  }

  close() {
    this.pause();
    this.layer.ghost = null;
    by("replay")?.replaceChildren();
    if (by("replay")) by("replay").hidden = true;
    this.onClose();
  }
}
