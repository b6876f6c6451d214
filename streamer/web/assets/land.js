/** The base map without a tile server: land, borders, a grid, and names where there is space. */

import { project } from "./fleet.js";
import { ViewCanvas } from "./fleet-layer.js";

const { L } = globalThis;
const EXTENT = 8192;
/** Zoom levels of the server's tiles; at the levels in between, these vector tiles are scaled. */
const LEVELS = [6, 3, 0];
const TILE = 512;
/** Time budget of a frame for painting further tiles, ms. */
const PAINTING = 5;
const [COUNTRY, , CAPITAL] = [0, 1, 2];

const kept = new Map();

/** Fetches a tile of the server once; null if it is all sea. */
function fetched(url, z, x, y) {
  const path = url.replace("{z}", z).replace("{x}", x).replace("{y}", y);
  if (!kept.has(path)) {
    const coming = fetch(path).then((answer) => {
      if (answer.status === 200) return answer.json().then((tile) => unpacked(tile, x === 0, x === 2 ** z - 1));
      if (answer.status === 204) return null;
      throw new Error(`${path}: ${answer.status}`);
    });
    // not built yet: the next request tries again
    coming.catch(() => kept.delete(path));
    kept.set(path, coming);
  }
  return kept.get(path);
}

/** Decodes a tile's polygons into paths with their bounding boxes, as most of them are not visible at a time. */
function unpacked({ land, places }, first, last) {
  const polygons = land.map(([, ...rings]) => {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    const fill = new Path2D();
    const line = new Path2D();
    for (const ring of rings) {
      for (let at = 2; at < ring.length; at += 1) ring[at] += ring[at - 2];
      let [x, y] = ring;
      fill.moveTo(x, y);
      line.moveTo(x, y);
      for (let at = 2; at <= ring.length; at += 2) {
        const to = at === ring.length ? 0 : at;
        const nextX = ring[to];
        const nextY = ring[to + 1];
        fill.lineTo(nextX, nextY);
        // the edge of the world map at the antimeridian is not a border
        const edge = x === nextX && ((first && x === 0) || (last && x === EXTENT));
        const outside =
          (x < 0 && nextX < 0) || (y < 0 && nextY < 0) || (x > EXTENT && nextX > EXTENT) || (y > EXTENT && nextY > EXTENT);
        if (edge || outside) line.moveTo(nextX, nextY);
        else line.lineTo(nextX, nextY);
        x = nextX;
        y = nextY;
        box[0] = Math.min(box[0], x);
        box[1] = Math.min(box[1], y);
        box[2] = Math.max(box[2], x);
        box[3] = Math.max(box[3], y);
      }
      fill.closePath();
    }
    return { fill, line, box };
  });
  return { polygons, places };
}

const queue = [];

/** Queues painting: only a few tiles per frame, so that the map and its vendors keep moving. */
function soon(paintTile) {
  if (queue.push(paintTile) === 1) requestAnimationFrame(work);
}

function work() {
  const until = performance.now() + PAINTING;
  do queue.shift()();
  while (queue.length > 0 && performance.now() < until);
  if (queue.length > 0) requestAnimationFrame(work);
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { land: of("--land"), line: of("--land-line"), grid: of("--grid"), label: of("--label"), halo: of("--label-halo"), font: of("--font") };
}

export const LandLayer = L.GridLayer.extend({
  options: { tileSize: TILE, minZoom: 1, updateWhenIdle: false, keepBuffer: 1, attribution: "Natural Earth · GeoNames" },

  initialize(url, names) {
    L.GridLayer.prototype.initialize.call(this, {});
    this._source = url;
    this._names = names;
  },

  createTile(coords, done) {
    const ratio = Math.min(2, globalThis.devicePixelRatio || 1);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = TILE * ratio;
    // a tile of this layer is 512 wide: at zoom z it lies within one of the server's up to level z - 1
    const zoom = coords.z - 1;
    const level = LEVELS.find((each) => each <= zoom);
    const shift = 2 ** (zoom - level);
    const across = 2 ** level;
    const x = Math.floor(coords.x / shift);
    const y = Math.floor(coords.y / shift);
    if (y < 0 || y >= across) {
      setTimeout(() => done(null, canvas));
      return canvas;
    }
    fetched(this._source, level, ((x % across) + across) % across, y).then(
      (tile) =>
        soon(() => {
          if (!canvas.isConnected) return; // zoomed on meanwhile
          const context = canvas.getContext("2d");
          const unit = (TILE * ratio * shift) / EXTENT;
          context.setTransform(unit, 0, 0, unit, -(coords.x - x * shift) * TILE * ratio, -(coords.y - y * shift) * TILE * ratio);
          if (tile !== null) {
            const part = EXTENT / shift;
            paint(context, tile.polygons, [(coords.x - x * shift) * part, (coords.y - y * shift) * part, part], unit, ratio);
            if (tile.places.length > 0) this._names.add(`${level}/${x}/${y}`, tile.places);
          }
          grid(context, coords, ratio);
          done(null, canvas);
        }),
      (error) => done(error, canvas),
    );
    return canvas;
  },
});

function paint(context, polygons, [left, top, part], unit, ratio) {
  const colour = colours();
  const margin = (4 * ratio) / unit;
  const seen = polygons.filter(
    ({ box }) => box[2] >= left - margin && box[0] <= left + part + margin && box[3] >= top - margin && box[1] <= top + part + margin,
  );
  context.fillStyle = colour.land;
  context.strokeStyle = colour.line;
  context.lineWidth = (1.1 * ratio) / unit;
  context.lineJoin = "round";
  for (const { fill } of seen) context.fill(fill, "evenodd");
  for (const { line } of seen) context.stroke(line);
}

/** Thin lines of longitude and latitude, which show that the map moves where it is empty. */
function grid(context, coords, ratio) {
  const span = 360 / 2 ** (coords.z - 1);
  const step = [30, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001].find((each) => each <= span / 3.5) ?? 0.001;
  const scale = 256 * 2 ** coords.z * ratio;
  const [left, top] = [coords.x * TILE * ratio, coords.y * TILE * ratio];
  const west = coords.x * span - 180;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.beginPath();
  for (let at = Math.ceil(west / step); at * step < west + span; at += 1) {
    const x = Math.round((at * step * scale) / 360 + scale / 2 - left) + 0.5;
    context.moveTo(x, 0);
    context.lineTo(x, TILE * ratio);
  }
  const latitude = (y) => (Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * 180) / Math.PI;
  const north = latitude(top / scale);
  const south = latitude((top + TILE * ratio) / scale);
  for (let at = Math.ceil(south / step); at * step < north; at += 1) {
    const y = Math.round(project(at * step, 0)[1] * scale - top) + 0.5;
    context.moveTo(0, y);
    context.lineTo(TILE * ratio, y);
  }
  context.strokeStyle = colours().grid;
  context.lineWidth = ratio;
  context.stroke();
}

export const NameLayer = ViewCanvas.extend({
  initialize() {
    ViewCanvas.prototype.initialize.call(this, "names", "names", 300);
    this._places = new Map();
  },

  getEvents() {
    return { ...ViewCanvas.prototype.getEvents.call(this), moveend: this.changed };
  },

  add(tile, places) {
    if (this._places.has(tile)) return;
    this._places.set(tile, places.map(([kind, name, long, lat, zoom]) => ({ kind, name, zoom, at: project(lat, long) })));
    this.changed();
  },

  _zooming() {
    ViewCanvas.prototype._zooming.call(this);
    this._canvas.classList.add("away");
  },

  changed() {
    this._request ??= requestAnimationFrame(() => {
      this._request = undefined;
      if (this._map && !this._busy) this._draw();
    });
  },

  _draw() {
    const context = this.begin();
    this._canvas.classList.remove("away");
    const { zoom, scale, x, y, width, height } = this.view();
    const colour = colours();
    const shown = new Map();
    for (const places of this._places.values()) {
      for (const place of places) {
        if (place.zoom > zoom + 0.25 || (place.kind === COUNTRY && zoom > 8)) continue;
        let px = place.at[0] * scale - x;
        if (px < 0) px += scale;
        else if (px > width) px -= scale;
        const py = place.at[1] * scale - y;
        if (px < -80 || py < -20 || px > width + 80 || py > height + 20) continue;
        // the same name is in tiles of several levels
        shown.set(`${place.kind === COUNTRY}${place.name}`, { ...place, px, py });
      }
    }
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.fillStyle = colour.label;
    context.strokeStyle = colour.halo;
    context.lineWidth = 3;
    const taken = [];
    for (const place of [...shown.values()].sort((a, b) => a.zoom - b.zoom || b.kind - a.kind)) {
      const country = place.kind === COUNTRY;
      const size = country ? 12 : Math.max(11, Math.min(16, 11 + (zoom - place.zoom) * 0.8));
      const text = country ? place.name.toUpperCase() : place.name;
      context.font = `${place.kind === CAPITAL || country ? 600 : 500} ${size}px ${colour.font}`;
      if ("letterSpacing" in context) context.letterSpacing = country ? "0.12em" : "0px";
      const half = context.measureText(text).width / 2 + 6;
      const box = [place.px - half, place.py - size, place.px + half, place.py + size];
      if (taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1])) continue;
      taken.push(box);
      context.strokeText(text, place.px, place.py);
      context.fillText(text, place.px, place.py);
    }
  },
});

/** Adds land and names to a map; returns a function to call when the colours change. */
export function ground(map, url) {
  const names = new NameLayer().addTo(map);
  const land = new LandLayer(url, names).addTo(map);
  let tries = 0;
  land.on("tileerror", () => {
    if (tries < 8 && land._retry === undefined) {
      tries += 1;
      land._retry = setTimeout(() => {
        land._retry = undefined;
        land.redraw();
      }, 1_000 * tries);
    }
  });
  return () => {
    land.redraw();
    names.changed();
  };
}
