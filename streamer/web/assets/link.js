/** The map's state in its URL's fragment: `#13/52.2297/21.0122&vendor=…&circle=lat,long,radius&open=1&q=…`. Pure. */

const PLACE = /^(\d+(?:\.\d+)?)\/(-?\d+(?:\.\d+)?)\/(-?\d+(?:\.\d+)?)$/;

function numbers(text, count) {
  const found = (text ?? "").split(",").map(Number);
  return found.length === count && found.every(Number.isFinite) ? found : null;
}

/** Parses a hash; missing or invalid values are null, false or empty. */
export function parse(hash) {
  const [first, ...rest] = hash.replace(/^#/, "").split("&");
  const place = PLACE.exec(first);
  const given = new URLSearchParams((place === null ? [first, ...rest] : rest).join("&"));
  const circle = numbers(given.get("circle"), 3);
  const box = numbers(given.get("box"), 4);
  let area = null;
  if (circle !== null) area = { center: { lat: circle[0], long: circle[1] }, radius: circle[2] };
  else if (box !== null) area = { sw: { lat: box[0], long: box[1] }, ne: { lat: box[2], long: box[3] } };
  return {
    place: place === null ? null : { zoom: Number(place[1]), center: [Number(place[2]), Number(place[3])] },
    vendor: given.get("vendor"),
    area,
    open: given.get("open") === "1",
    query: given.get("q") ?? "",
    theme: given.get("theme"),
    token: given.get("token"),
  };
}

/** Returns the hash that restores the same map. */
export function format({ place, vendor, area, open, query }) {
  const parts = [];
  if (place) parts.push(`${place.zoom}/${place.center[0].toFixed(5)}/${place.center[1].toFixed(5)}`);
  if (vendor) parts.push(`vendor=${encodeURIComponent(vendor)}`);
  if (area?.center) parts.push(`circle=${area.center.lat},${area.center.long},${area.radius}`);
  else if (area) parts.push(`box=${area.sw.lat},${area.sw.long},${area.ne.lat},${area.ne.long}`);
  if (open) parts.push("open=1");
  if (query) parts.push(`q=${encodeURIComponent(query)}`);
  return `#${parts.join("&")}`;
}
