/** The vendors on the map: one canvas, redrawn each frame only while a vendor moves. */

const { L } = globalThis;
const SIZE = 34;
const TURNS = 64;
const KINDS = ["open", "closed", "offline"];
/** A click within this many pixels selects a vendor. */
const REACH = 20;
/** Names are drawn from this zoom on, and only while no more vendors than this are in view. */
const MOST_NAMED = 60;
const NAMED_FROM = 14;
/** More vendors in view than this are drawn on whole pixels. */
const MOST_BETWEEN = 300;

/** Duration of Leaflet's zoom animation, ms; `eased` is its curve, cubic-bezier(0, 0, 0.25, 1). */
const ZOOM_TAKES = 250;

function eased(part) {
  let [low, high] = [0, 1];
  for (let turn = 0; turn < 14; turn += 1) {
    const t = (low + high) / 2;
    if (0.75 * (1 - t) * t * t + t ** 3 < part) low = t;
    else high = t;
  }
  return 3 * (1 - low) * low * low + low ** 3;
}

function kindOf(card) {
  if (!card.online) return "offline";
  return card.open ? "open" : "closed";
}

/** A canvas that stays over the map's view while the map moves. */
export const ViewCanvas = L.Layer.extend({
  initialize(className, pane, zIndex) {
    this._className = className;
    this._paneName = pane;
    this._zIndex = zIndex;
  },

  onAdd(map) {
    if (!map.getPane(this._paneName)) map.createPane(this._paneName).style.zIndex = this._zIndex;
    const canvas = (this._canvas = L.DomUtil.create("canvas", `${this._className} leaflet-zoom-animated`));
    canvas.setAttribute("aria-hidden", "true");
    map.getPane(this._paneName).append(canvas);
    this.context = canvas.getContext("2d");
    this._resize();
  },

  onRemove() {
    this._canvas.remove();
  },

  getEvents() {
    return { resize: this._resize, zoomanim: this._animate, zoomstart: this._zooming, zoomend: this._zoomed, move: this.changed };
  },

  changed() {},

  _resize() {
    const size = this._map.getSize();
    this._ratio = Math.min(3, globalThis.devicePixelRatio || 1);
    this._canvas.width = Math.round(size.x * this._ratio);
    this._canvas.height = Math.round(size.y * this._ratio);
    this._canvas.style.width = `${size.x}px`;
    this._canvas.style.height = `${size.y}px`;
    this.changed();
  },

  _zooming() {
    this._busy = true;
  },

  _zoomed() {
    this._busy = false;
    this.changed();
  },

  _animate({ center, zoom }) {
    // the drawing scales with the map, and is redrawn when the zoom ends
    const scale = this._map.getZoomScale(zoom, this._drawnZoom);
    const origin = this._map._latLngToNewLayerPoint(this._drawnCorner, zoom, center);
    L.DomUtil.setTransform(this._canvas, origin, scale);
  },

  /** Returns the visible part of the world: pixels = position * scale - corner. */
  view() {
    const map = this._map;
    const zoom = map.getZoom();
    const corner = map.getPixelBounds().min;
    const size = map.getSize();
    return { zoom, scale: 256 * 2 ** zoom, x: corner.x, y: corner.y, width: size.x, height: size.y, ratio: this._ratio };
  },

  /** Moves the canvas over the view and clears it. */
  begin() {
    const map = this._map;
    const corner = map.containerPointToLayerPoint([0, 0]);
    L.DomUtil.setTransform(this._canvas, corner, 1);
    this._drawnZoom = map.getZoom();
    this._drawnCorner = map.layerPointToLatLng(corner);
    const { context, _ratio: ratio } = this;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this._canvas.width, this._canvas.height);
    return context;
  },
});

export const FleetLayer = ViewCanvas.extend({
  initialize(fleet) {
    ViewCanvas.prototype.initialize.call(this, "fleet", "fleet", 620);
    this.fleet = fleet;
    this.chosen = null;
    /** Past positions of the selected vendor, oldest first. */
    this.trail = [];
    /** The selected vendor's position in a replay: {x, y, heading}, or null. */
    this.ghost = null;
    this.onFrame = () => {};
    /** Drawing durations of the last frames, ms. */
    this.costs = new Float64Array(600);
    this.frames = 0;
    this.inView = 0;
  },

  onAdd(map) {
    ViewCanvas.prototype.onAdd.call(this, map);
    this._canvas.classList.remove("leaflet-zoom-animated");
    this.colours();
  },

  // during a zoom the signs keep their size and follow Leaflet's animation of the map

  _zooming() {},

  _animate() {
    this._from = this.view();
    this._since = performance.now();
    this.changed();
  },

  view() {
    const to = ViewCanvas.prototype.view.call(this);
    const part = this._from === undefined ? 1 : (performance.now() - this._since) / ZOOM_TAKES;
    if (part >= 1) {
      this._from = undefined;
      return to;
    }
    const [from, gone] = [this._from, eased(part)];
    const between = (name) => from[name] + (to[name] - from[name]) * gone;
    return { ...to, scale: between("scale"), x: between("x"), y: between("y") };
  },

  /** Reads the colours of the theme again. */
  colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    this._colours = {
      open: of("--open"),
      closed: of("--closed"),
      rim: of("--surface-solid"),
      ink: of("--ink"),
      accent: of("--accent"),
      halo: of("--label-halo"),
      font: of("--font"),
    };
    this._signs = this._drawSigns();
    this.changed();
  },

  _resize() {
    ViewCanvas.prototype._resize.call(this);
    if (this._colours && this._signsRatio !== this._ratio) this._signs = this._drawSigns();
  },

  changed() {
    this._dirty = true;
    this._wake();
  },

  _wake() {
    if (this._request === undefined) this._request = requestAnimationFrame(() => this._frame());
  },

  _frame() {
    this._request = undefined;
    if (!this._map) return;
    const now = performance.now();
    const moving = now < this.fleet.until || this._from !== undefined;
    if (!this._busy && (moving || this._dirty || this._wasMoving)) {
      this._dirty = false;
      // once more after the last movement, so that everything is drawn at its end
      this._wasMoving = moving;
      this.onFrame(now);
      this._draw(now);
      this.costs[this.frames % this.costs.length] = performance.now() - now;
      this.frames += 1;
    }
    if (this._busy || moving || this._dirty || this._wasMoving) this._wake();
  },

  _draw(now) {
    const context = this.begin();
    const { scale, x: cornerX, y: cornerY, width, height, zoom } = this.view();
    const half = SIZE / 2;
    const lists = { open: [], closed: [], offline: [] };
    const beside = [];
    const world = scale;
    let chosen = null;
    let inView = 0;
    for (const mover of this.fleet.movers.values()) {
      mover.at(now);
      let px = mover.x * scale - cornerX;
      // the world repeats: draw the visible copy
      if (px < -half) px += world * Math.ceil((-half - px) / world);
      else if (px > width + half && px - world >= -half) px -= world * Math.ceil((px - width - half) / world);
      const py = mover.y * scale - cornerY;
      mover.px = px;
      mover.py = py;
      if (px < -half || py < -half || px > width + half || py > height + half) continue;
      inView += px >= 0 && py >= 0 && px <= width && py <= height ? 1 : 0;
      if (mover.card.vendorId === this.chosen) chosen = mover;
      else if (!mover.watched) beside.push(mover);
      else lists[kindOf(mover.card)].push(mover);
    }
    this.inView = inView;
    if (this.trail.length > 0) this._drawTrail(context, scale, cornerX, cornerY, world, width);
    // without a GPU a copy at a fraction of a pixel costs many times as much
    this._whole = inView > MOST_BETWEEN;
    context.imageSmoothingEnabled = !this._whole;
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (beside.length > 0) {
      context.globalAlpha = 0.28;
      for (const mover of beside) this._sign(context, mover, kindOf(mover.card));
      context.globalAlpha = 1;
    }
    for (const kind of ["offline", "closed", "open"]) {
      for (const mover of lists[kind]) this._sign(context, mover, kind);
    }
    const ratio = this._ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (chosen !== null) {
      context.fillStyle = this._colours.accent;
      context.globalAlpha = 0.22;
      context.beginPath();
      context.arc(chosen.px, chosen.py, 21, 0, 2 * Math.PI);
      context.fill();
      context.globalAlpha = 1;
      context.setTransform(1, 0, 0, 1, 0, 0);
      this._sign(context, chosen, kindOf(chosen.card));
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.strokeStyle = this._colours.accent;
      context.lineWidth = 2.5;
      context.beginPath();
      context.arc(chosen.px, chosen.py, 14.5, 0, 2 * Math.PI);
      context.stroke();
    }
    if (this.ghost !== null) this._drawGhost(context, scale, cornerX, cornerY, width);
    const taken = [];
    if (chosen !== null) this._name(context, chosen, true, taken);
    if (zoom >= NAMED_FROM && inView <= MOST_NAMED) {
      for (const kind of KINDS) for (const mover of lists[kind]) this._name(context, mover, false, taken);
    }
  },

  _drawGhost(context, scale, cornerX, cornerY, width) {
    let px = this.ghost.x * scale - cornerX;
    px += scale * Math.round((width / 2 - px) / scale);
    const py = this.ghost.y * scale - cornerY;
    Object.assign(this.ghost, { px, py });
    context.fillStyle = context.strokeStyle = this._colours.accent;
    context.globalAlpha = 0.22;
    context.beginPath();
    context.arc(px, py, 19, 0, 2 * Math.PI);
    context.fill();
    context.globalAlpha = 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    this._sign(context, this.ghost, "open");
    context.setTransform(this._ratio, 0, 0, this._ratio, 0, 0);
  },

  _sign(context, { px, py, heading }, kind) {
    const { picture, cell } = this._signs;
    const turn = heading === null || kind === "offline" ? TURNS : Math.round((heading / 360) * TURNS) % TURNS;
    const row = KINDS.indexOf(kind);
    let x = px * this._ratio - cell / 2;
    let y = py * this._ratio - cell / 2;
    if (this._whole) {
      x = Math.round(x);
      y = Math.round(y);
    }
    context.drawImage(picture, turn * cell, row * cell, cell, cell, x, y, cell, cell);
  },

  /** Draws a name below its sign unless another name is there already. */
  _name(context, { px, py, card }, bold, taken) {
    context.font = `${bold ? 700 : 550} 12px ${this._colours.font}`;
    context.textAlign = "center";
    context.lineJoin = "round";
    context.lineWidth = 3.5;
    context.strokeStyle = this._colours.halo;
    context.fillStyle = this._colours.ink;
    const name = card.name.length > 26 ? `${card.name.slice(0, 25)}…` : card.name;
    // an estimated width is sufficient, and cheaper than measuring
    const half = name.length * 3.3 + 3;
    const free = taken.every(([x, y, other]) => Math.abs(px - x) >= half + other || Math.abs(py - y) >= 15);
    if (!free) return;
    taken.push([px, py, half]);
    context.strokeText(name, px, py + 27);
    context.fillText(name, px, py + 27);
  },

  _drawTrail(context, scale, cornerX, cornerY, world, width) {
    const mover = this.ghost === null ? this.fleet.get(this.chosen) : undefined;
    const places = mover === undefined ? this.trail : [...this.trail, [mover.x, mover.y]];
    const points = places.map(([x, y]) => [x * scale - cornerX, y * scale - cornerY]);
    const shift = points.at(-1)[0] < 0 ? world : points.at(-1)[0] > width ? -world : 0;
    if (shift !== 0 && points.at(-1)[0] + shift >= 0 && points.at(-1)[0] + shift <= width) for (const p of points) p[0] += shift;
    context.lineCap = "butt";
    context.lineJoin = "round";
    const pieces = 18;
    const stroke = (colour, lineWidth, fading) => {
      context.strokeStyle = colour;
      context.lineWidth = lineWidth;
      for (let piece = 0; piece < pieces; piece += 1) {
        const from = Math.floor((piece / pieces) * (points.length - 1));
        const to = Math.floor(((piece + 1) / pieces) * (points.length - 1));
        if (from === to) continue;
        context.globalAlpha = fading ? 0.15 + (0.85 * (piece + 1)) / pieces : 0.5 * ((piece + 1) / pieces);
        context.beginPath();
        context.moveTo(...points[from]);
        for (let at = from + 1; at <= to; at += 1) context.lineTo(...points[at]);
        context.stroke();
      }
    };
    stroke(this._colours.rim, 7, false);
    stroke(this._colours.accent, 3.5, true);
    context.globalAlpha = 1;
  },

  /** Returns a sprite sheet of all signs: each kind in each direction, and without direction. */
  _drawSigns() {
    const ratio = (this._signsRatio = this._ratio);
    const cell = Math.round(SIZE * ratio);
    const canvas = new OffscreenCanvas(cell * (TURNS + 1), cell * KINDS.length);
    const context = canvas.getContext("2d");
    const { open, closed, rim } = this._colours;
    for (const [row, kind] of KINDS.entries()) {
      for (let turn = 0; turn <= TURNS; turn += 1) {
        context.setTransform(ratio, 0, 0, ratio, turn * cell + cell / 2, row * cell + cell / 2);
        const heads = turn < TURNS && kind !== "offline";
        if (heads) context.rotate((turn / TURNS) * 2 * Math.PI);
        const fill = kind === "open" ? open : closed;
        const radius = kind === "open" ? 8 : 7.2;
        context.lineJoin = "round";
        context.beginPath();
        if (heads) {
          // a drop: the tangents of the disc meet in the direction of travel
          const tip = 15;
          const angle = Math.acos(radius / tip);
          context.moveTo(0, -tip);
          context.arc(0, 0, radius, angle - Math.PI / 2, 1.5 * Math.PI - angle);
          context.closePath();
        } else context.arc(0, 0, radius, 0, 2 * Math.PI);
        if (kind === "offline") {
          context.globalAlpha = 0.85;
          context.fillStyle = rim;
          context.fill();
          context.setLineDash([3.2, 2.6]);
          context.strokeStyle = closed;
          context.lineWidth = 1.8;
          context.stroke();
          context.setLineDash([]);
          context.globalAlpha = 1;
          continue;
        }
        context.strokeStyle = rim;
        context.lineWidth = 3.2;
        context.stroke();
        context.fillStyle = fill;
        context.fill();
        context.fillStyle = context.strokeStyle = rim;
        context.beginPath();
        if (kind === "open") {
          context.arc(0, 0, 2.6, 0, 2 * Math.PI);
          context.fill();
        } else {
          // a bar marks closed without relying on colour
          context.rotate(heads ? (-turn / TURNS) * 2 * Math.PI : 0);
          context.lineWidth = 2;
          context.lineCap = "round";
          context.moveTo(-3.2, 0);
          context.lineTo(3.2, 0);
          context.stroke();
        }
      }
    }
    return { picture: canvas.transferToImageBitmap(), cell };
  },

  /** Returns the vendor nearest to a point of the view, within reach, or null. */
  near(point) {
    let found = null;
    let best = REACH ** 2;
    for (const mover of this.fleet.movers.values()) {
      const d = (mover.px - point.x) ** 2 + (mover.py - point.y) ** 2;
      if (d < best) {
        best = d;
        found = mover;
      }
    }
    return found;
  },
});
