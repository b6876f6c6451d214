/** A customer's web app: the vendors in view on a Leaflet map. */

import { CustomerClient, type Card } from "@venta/client";
import * as L from "leaflet";
import "leaflet/dist/leaflet.css";

const url: string = import.meta.env.VITE_VENTA_URL ?? "http://127.0.0.1:8080";
const map = L.map("map").setView([52.2297, 21.0122], 14);
const markers = new Map<string, L.CircleMarker>();

function style(card: Card): L.CircleMarkerOptions {
  return { radius: 8, color: card.online ? (card.open ? "#0b8f69" : "#6b7588") : "#b0b7c3", fillOpacity: 0.8 };
}

function area() {
  const bounds = map.getBounds();
  return {
    ne: { lat: bounds.getNorth(), long: bounds.getEast() },
    sw: { lat: bounds.getSouth(), long: bounds.getWest() },
  };
}

const client = new CustomerClient(url).connect();
client.on("state", (state) => document.body.classList.toggle("stale", state !== "connected"));

const watch = client.watch(
  { area: area() },
  {
    onEntered: (card) => markers.set(card.vendorId, L.circleMarker([card.lat, card.long], style(card)).bindTooltip(card.name).addTo(map)),
    onMoved: (card) => markers.get(card.vendorId)?.setLatLng([card.lat, card.long]),
    onChanged: (card) => markers.get(card.vendorId)?.setStyle(style(card)),
    onLeft: (card) => {
      markers.get(card.vendorId)?.remove();
      markers.delete(card.vendorId);
    },
  },
);
map.on("moveend", () => watch.move({ area: area() }));
