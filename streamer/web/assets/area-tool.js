/** Drawing of a box or circle on the map by dragging or by keys. */

import { distance } from "./fleet.js";

const { L } = globalThis;
/** A drag shorter than this, in pixels, counts as a click. */
const SHORTEST = 12;
const METRES_A_DEGREE = 111_195;

export class AreaTool {
  /**
   * @param map the Leaflet map
   * @param bounds {maxRadius, maxExtent} in metres: the server's limits
   * @param handlers onMode(mode), onArea(area or null); areas have the format of a `watch` message
   */
  constructor(map, bounds, handlers) {
    this.map = map;
    this.bounds = bounds;
    this.handlers = handlers;
    this.mode = null;
    this.area = null;
    this.shape = null;
    this.drag = null;
    this.ended = -Infinity;
    const container = map.getContainer();
    // in the capture phase: Leaflet's own handlers would move the map
    container.addEventListener("pointerdown", (event) => this.down(event), true);
    container.addEventListener("pointermove", (event) => this.moved(event), true);
    container.addEventListener("pointerup", (event) => this.up(event), true);
    container.addEventListener("pointercancel", () => this.forget(), true);
    // the click that ends a drag selects nothing
    container.addEventListener("click", (event) => performance.now() - this.ended < 100 && event.stopPropagation(), true);
  }

  /** Starts drawing a "box" or a "circle"; null ends it. */
  use(mode) {
    this.mode = this.mode === mode ? null : mode;
    this.forget();
    const container = this.map.getContainer();
    container.classList.toggle("drawing", this.mode !== null);
    for (const handler of ["dragging", "boxZoom", "doubleClickZoom"]) {
      if (this.mode === null) this.map[handler].enable();
      else this.map[handler].disable();
    }
    this.handlers.onMode(this.mode);
  }

  clear() {
    this.show(null);
  }

  /** Places the shape in the middle of the view, for use without a pointer. */
  middle() {
    const bounds = this.map.getBounds().pad(-0.25);
    const center = this.map.getCenter();
    const size = this.map.getSize();
    const edge = this.map.containerPointToLatLng([size.x / 2 + Math.min(size.x, size.y) / 4, size.y / 2]);
    this.show(this.mode === "circle" ? this.circle(center, edge) : this.box(bounds.getSouthWest(), bounds.getNorthEast()));
    this.use(null);
  }

  /** Scales the area. */
  scale(by) {
    const { area } = this;
    if (area === null) return;
    if (area.center) this.show({ ...area, radius: Math.min(this.bounds.maxRadius, area.radius * by) });
    else {
      const bounds = this.shape.getBounds().pad((by - 1) / 2);
      this.show(this.box(bounds.getSouthWest(), bounds.getNorthEast()));
    }
  }

  /** Moves the area by a part of its width to the east and of its height to the north. */
  shift(east, north) {
    if (this.area === null) return;
    const bounds = this.shape.getBounds();
    const dLat = (bounds.getNorth() - bounds.getSouth()) * north;
    const dLong = (bounds.getEast() - bounds.getWest()) * east;
    const to = ({ lat, long }) => ({ lat: Math.max(-85, Math.min(85, lat + dLat)), long: wrapped(long + dLong) });
    const { area } = this;
    this.show(area.center ? { ...area, center: to(area.center) } : { ne: to(area.ne), sw: to(area.sw) });
  }

  // internal

  at(event) {
    return this.map.mouseEventToLatLng(event);
  }

  down(event) {
    if (this.mode === null || event.button !== 0 || event.target.closest(".leaflet-control")) return;
    event.stopPropagation();
    event.preventDefault();
    this.map.getContainer().setPointerCapture(event.pointerId);
    this.drag = { from: this.at(event), x: event.clientX, y: event.clientY, before: this.area };
  }

  moved(event) {
    if (this.drag === null) return;
    event.stopPropagation();
    if (Math.hypot(event.clientX - this.drag.x, event.clientY - this.drag.y) < SHORTEST) return;
    this.draw(this.dragged(this.at(event)));
  }

  up(event) {
    if (this.drag === null) return;
    event.stopPropagation();
    const long = Math.hypot(event.clientX - this.drag.x, event.clientY - this.drag.y) >= SHORTEST;
    const area = long ? this.dragged(this.at(event)) : this.drag.before;
    this.drag = null;
    this.ended = performance.now();
    if (!long) return;
    this.show(area);
    this.use(null);
  }

  forget() {
    if (this.drag === null) return;
    const { before } = this.drag;
    this.drag = null;
    this.draw(before);
  }

  dragged(to) {
    return this.mode === "circle" ? this.circle(this.drag.from, to) : this.box(this.drag.from, to);
  }

  circle(center, edge) {
    const radius = Math.max(20, Math.min(this.bounds.maxRadius, distance(center.lat, center.lng, edge.lat, edge.lng)));
    return { center: { lat: round(center.lat), long: round(wrapped(center.lng)) }, radius: Math.round(radius) };
  }

  /** Returns a box within the limits; the first corner stays. */
  box(from, to) {
    return boxOf(from, to, this.bounds.maxExtent);
  }

  draw(area) {
    this.shape?.remove();
    this.shape = area === null ? null : shapeOf(area, this.map.getCenter().lng).addTo(this.map);
  }

  /** Shows an area, or null for none, and reports it. */
  show(area) {
    this.area = area;
    this.draw(area);
    this.handlers.onArea(area);
  }
}

/** Slightly below the limit, as the server's computation may differ. */
const LESS = 0.995;

/** Returns degrees of longitude for a width in metres, at the widest latitude of a box. */
function across(south, north, metres) {
  const widest = south <= 0 && north >= 0 ? 0 : Math.min(Math.abs(south), Math.abs(north), 89);
  return Math.min(359, metres / (METRES_A_DEGREE * Math.cos((widest * Math.PI) / 180)));
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** Returns a box from one corner towards another within the limits; the first corner stays. */
export function boxOf(from, to, maxExtent) {
  const most = maxExtent * LESS;
  const high = most / METRES_A_DEGREE;
  const lat = clamp(to.lat, Math.max(-90, from.lat - high), Math.min(90, from.lat + high));
  const [south, north] = [Math.min(from.lat, lat), Math.max(from.lat, lat)];
  const wide = across(south, north, most);
  const lng = clamp(to.lng, from.lng - wide, from.lng + wide);
  return corners(south, Math.min(from.lng, lng), north, Math.max(from.lng, lng));
}

/** Returns bounds as an area, `clipped` around the centre where they exceed the limit. */
export function boxAround(center, bounds, maxExtent) {
  const most = (maxExtent * LESS) / 2;
  const high = most / METRES_A_DEGREE;
  const south = Math.max(-90, bounds.getSouth(), center.lat - high);
  const north = Math.min(90, bounds.getNorth(), center.lat + high);
  const wide = across(south, north, most);
  const west = Math.max(bounds.getWest(), center.lng - wide);
  const east = Math.min(bounds.getEast(), center.lng + wide);
  const clipped = south > bounds.getSouth() + 1e-9 || west > bounds.getWest() || east < bounds.getEast();
  return { area: corners(south, west, north, east), clipped };
}

function corners(south, west, north, east) {
  return { ne: { lat: round(north), long: round(wrapped(east)) }, sw: { lat: round(south), long: round(wrapped(west)) } };
}

export function shapeOf(area, near = 0) {
  const style = { className: "watched-area", color: "var(--accent)", weight: 2, fillOpacity: 0.08, interactive: false };
  const turns = (long) => long + 360 * Math.round((near - long) / 360);
  if (area.center) return L.circle([area.center.lat, turns(area.center.long)], { ...style, radius: area.radius });
  const west = turns(area.sw.long);
  const east = area.ne.long < area.sw.long ? area.ne.long + 360 : area.ne.long;
  return L.rectangle(
    [
      [area.sw.lat, west],
      [area.ne.lat, west + (east - area.sw.long)],
    ],
    style,
  );
}

export function wrapped(long) {
  return ((((long + 180) % 360) + 360) % 360) - 180;
}

function round(degrees) {
  return Math.round(degrees * 1e6) / 1e6;
}
