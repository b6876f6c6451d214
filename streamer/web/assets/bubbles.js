/** Groups of vendors as bubbles with counts, shown when there are too many vendors to show each. */

import { project, unproject } from "./fleet.js";
import { ViewCanvas } from "./fleet-layer.js";
import { number } from "./page.js";

const { L } = globalThis;
const SMALLEST = 15;
const LARGEST = 34;

function radius(count) {
  return Math.min(LARGEST, SMALLEST + 3.4 * Math.log10(count) ** 1.25 * 1.6);
}

/**
 * Merges groups whose bubbles would overlap at a scale (pixels of the world's width), largest first.
 * A bubble is {x, y, count, open, online, groups}: x, y on the Mercator square, weighted by count.
 */
export function join(groups, scale) {
  const bubbles = [];
  for (const group of [...groups].sort((a, b) => b.count - a.count)) {
    const [x, y] = project(group.lat, group.long);
    const r = radius(group.count);
    const into = bubbles.find((one) => {
      const dx = Math.abs(one.x - x);
      return Math.hypot(Math.min(dx, 1 - dx), one.y - y) * scale < one.radius + r + 2;
    });
    if (into === undefined) {
      bubbles.push({ x, y, count: group.count, open: group.open, online: group.online, radius: r, groups: [group] });
      continue;
    }
    const count = into.count + group.count;
    const near = x + Math.round(into.x - x);
    into.x += ((near - into.x) * group.count) / count;
    into.y += ((y - into.y) * group.count) / count;
    into.open += group.open;
    into.online += group.online;
    into.count = count;
    into.radius = radius(count);
    into.groups.push(group);
  }
  return bubbles;
}

export const BubbleLayer = ViewCanvas.extend({
  initialize() {
    ViewCanvas.prototype.initialize.call(this, "bubbles", "bubbles", 610);
    this.groups = new Map();
    this.bubbles = [];
  },

  onAdd(map) {
    ViewCanvas.prototype.onAdd.call(this, map);
    this.colours();
  },

  colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    this._colours = { open: of("--go"), closed: of("--closed-text"), ink: of("--surface-solid"), font: of("--font") };
    this.changed();
  },

  /** @param groups Map of groups of a `counts` watch */
  show(groups) {
    this.groups = groups;
    this._joined = undefined;
    this.changed();
  },

  changed() {
    this._request ??= requestAnimationFrame(() => {
      this._request = undefined;
      if (this._map && !this._busy && this._colours) this._draw();
    });
  },

  _draw() {
    const context = this.begin();
    const { scale, x, y, width, height } = this.view();
    if (this._joined !== scale) {
      this._joined = scale;
      this.bubbles = join(this.groups.values(), scale);
    }
    const { open, closed, ink, font } = this._colours;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const bubble of this.bubbles) {
      bubble.px = bubble.x * scale - x;
      bubble.px += scale * Math.round((width / 2 - bubble.px) / scale);
      bubble.py = bubble.y * scale - y;
      const { px, py, radius: r } = bubble;
      bubble.seen = px > -r && py > -r && px < width + r && py < height + r;
      if (!bubble.seen) continue;
      context.fillStyle = bubble.open > 0 ? open : closed;
      context.globalAlpha = 0.28;
      context.beginPath();
      context.arc(px, py, r + 4, 0, 2 * Math.PI);
      context.fill();
      context.globalAlpha = 1;
      context.beginPath();
      context.arc(px, py, r, 0, 2 * Math.PI);
      context.fill();
      context.fillStyle = ink;
      context.font = `650 ${r < 19 ? 12 : 13}px ${font}`;
      context.fillText(number(bubble.count, { notation: "compact", maximumFractionDigits: 1 }), px, py + 0.5);
    }
  },

  /** Returns the bubble at a point of the view. */
  near(point) {
    return this.bubbles.find((one) => one.seen && Math.hypot(one.px - point.x, one.py - point.y) <= one.radius + 4) ?? null;
  },

  /** Zooms to the vendors of a bubble. */
  enter(bubble) {
    const map = this._map;
    const zoom = map.getZoom();
    const spread = bubble.groups.map(({ lat, long }) => [lat, unproject(project(lat, long)[0] + Math.round(bubble.x - project(lat, long)[0]), 0)[1]]);
    const wanted = bubble.groups.length > 1 ? map.getBoundsZoom(L.latLngBounds(spread).pad(0.3)) : zoom + 2;
    const [lat, lng] = unproject(bubble.x, bubble.y);
    const turns = 360 * Math.round((map.getCenter().lng - lng) / 360);
    map.setView([lat, lng + turns], Math.min(map.getMaxZoom(), Math.max(zoom + 1, wanted)));
  },
});
