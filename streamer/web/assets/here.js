/** The customer's position: a dot with its accuracy on the map, and directions to a vendor by the device's maps app. */

import { remember, remembered, text } from "./page.js";

const { L } = globalThis;
const ERRORS = { 1: "here.blocked", 2: "here.unavailable", 3: "here.timeout" };

export class Here {
  /** @param handlers onPosition(first), onError(text), onActive(boolean) */
  constructor(map, handlers) {
    this.map = map;
    this.handlers = handlers;
    /** [lat, long] or null. */
    this.position = null;
    this.watching = null;
    this.layers = [];
  }

  /** Starts again, without moving the map, if the visitor allowed it before. */
  async resume() {
    if (remembered("here") === null || !navigator.permissions) return;
    const { state } = await navigator.permissions.query({ name: "geolocation" }).catch(() => ({}));
    if (state === "granted") this.start(false);
  }

  toggle() {
    if (this.watching === null) this.start(true);
    else this.stop();
  }

  start(move) {
    if (!navigator.geolocation) return this.handlers.onError(text("here.unavailable"));
    let first = move;
    this.watching = navigator.geolocation.watchPosition(
      ({ coords }) => {
        this.show([coords.latitude, coords.longitude], coords.accuracy);
        remember("here", "1");
        this.handlers.onPosition(first);
        first = false;
      },
      ({ code }) => {
        this.handlers.onError(text(ERRORS[code]));
        if (code === 1) this.stop();
      },
      { enableHighAccuracy: true, maximumAge: 5_000, timeout: 20_000 },
    );
    this.handlers.onActive(true);
  }

  stop() {
    navigator.geolocation.clearWatch(this.watching);
    this.watching = null;
    this.position = null;
    remember("here", null);
    for (const layer of this.layers.splice(0)) layer.remove();
    this.handlers.onActive(false);
  }

  show(position, accuracy) {
    this.position = position;
    if (this.layers.length === 0) {
      this.layers = [
        L.circle(position, { className: "here-accuracy", weight: 1, fillOpacity: 0.12, interactive: false }),
        L.circleMarker(position, { className: "here", radius: 7, weight: 3, fillOpacity: 1 }).bindTooltip(text("here")),
      ].map((layer) => layer.addTo(this.map));
    }
    this.layers[0].setRadius(accuracy);
    for (const layer of this.layers) layer.setLatLng(position);
  }
}

/** Returns a link that opens directions to a vendor in the maps app of this kind of device. */
export function directions({ lat, long, name }, agent = navigator.userAgent) {
  const place = `${lat.toFixed(6)},${long.toFixed(6)}`;
  if (/iPhone|iPad|Macintosh/.test(agent)) return `https://maps.apple.com/?daddr=${place}&q=${encodeURIComponent(name)}`;
  if (/Android/.test(agent)) return `geo:${place}?q=${place}(${encodeURIComponent(name)})`;
  return `https://www.openstreetmap.org/directions?to=${encodeURIComponent(place)}`;
}
