/** The live map: connects its components. The client has the state; the components show it. */

import { CustomerClient } from "/client/venta.js";
import { AreaTool, boxAround } from "./area-tool.js";
import { BubbleLayer } from "./bubbles.js";
import { distance, Fleet, project, unproject } from "./fleet.js";
import { FleetLayer } from "./fleet-layer.js";
import { Here } from "./here.js";
import { ground } from "./land.js";
import { format, parse } from "./link.js";
import { ago, by, clock, count, element, miles, millis, number, put, remember, remembered, settings, span, text, theme, token } from "./page.js";
import { Panel } from "./panel.js";

const { L } = globalThis;
const TRAIL = 30 * 60_000;
/** Rate and delay are averaged over this time. */
const WINDOW = 5_000;
const OLDEST = 60_000;
const ANNOUNCE = 15_000;
/** More vendors than MANY in view are shown as bubbles, until they are no more than FEW. */
const FEW = 1_500;
const MANY = 2_000;
/** From this zoom on vendors are requested first, and counts when zoomed out further. */
const STREET = 12;
const SEARCH_AFTER = 250;
const WORLD = { ne: { lat: 90, long: 180 }, sw: { lat: -90, long: -180 } };
const NOTICE = 6_000;

// the map

let accessToken = token("token");
const opened = parse(location.hash);
const last = parse(location.hash === "" ? (remembered("link") ?? "") : location.hash);
document.body.classList.toggle("embed", settings.embed);
const map = L.map("map", {
  center: last.place?.center ?? settings.center,
  zoom: last.place?.zoom ?? 13,
  minZoom: 2,
  maxZoom: 19,
  zoomControl: false,
  attributionControl: false,
  worldCopyJump: true,
  maxBoundsViscosity: 1,
  maxBounds: [
    [-85.06, -Infinity],
    [85.06, Infinity],
  ],
});
L.control.attribution({ position: "bottomleft", prefix: "Leaflet" }).addTo(map);
L.control.scale({ position: "bottomleft", imperial: miles, metric: !miles }).addTo(map);
L.control.zoom({ position: "bottomright" }).addTo(map);

const fleet = new Fleet();
const bubbles = new BubbleLayer().addTo(map);
const layer = new FleetLayer(fleet).addTo(map);
let recolour = () => {};
if (settings.tilesUrl !== null) {
  L.tileLayer(settings.tilesUrl, {
    className: "streets",
    maxZoom: 19,
    attribution: element("span", { textContent: settings.tilesAttribution }).innerHTML,
  }).addTo(map);
} else if (settings.landUrl !== null) recolour = ground(map, settings.landUrl);

const colours = theme(() => {
  layer.colours();
  bubbles.colours();
  recolour();
}, opened.theme);

// the connection

const client = new CustomerClient(location.origin, {
  getToken: ({ refresh }) => askToken(refresh),
  silence: 10_000,
  answerTimeout: 5_000,
  maxDelay: 10_000,
  onState: () => status(),
  onError: (error) => error.id === undefined && notice(error.message),
});

/** Whether a token was entered between two attempts to connect, so that it is not the refused one. */
let entered = false;

/** Returns the token. A refused one is dropped if the map works without; otherwise the dialog asks for another. */
function askToken(refused) {
  if (accessToken !== null && (!refused || entered)) {
    entered = false;
    return accessToken;
  }
  if (refused && !settings.tokenNeeded) {
    accessToken = null;
    remember("token", null);
    notice(text("token.dropped"), NOTICE);
    return null;
  }
  if (!settings.tokenNeeded) return null;
  const dialog = by("token-dialog");
  if (refused) put("token-why", text("token.refused"));
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve, reject) => {
    by("token-form").onsubmit = (event) => {
      event.preventDefault();
      accessToken = by("token").value.trim();
      remember("token", accessToken);
      dialog.close();
      // the client's request for a token times out, but the dialog stays open
      entered = client.state === "reconnecting";
      if (entered) client.connect();
      resolve(accessToken);
    };
    dialog.onclose = () => by("token").value.trim() === accessToken || reject(new Error("not signed in"));
  });
}
by("token-later").addEventListener("click", () => {
  client.disconnect();
  by("token-dialog").close();
});

// watches

const samples = [];

/** Handlers that put the vendors of one watch into the fleet, under the watch's name. */
function handlers(name, extra = {}) {
  const put = (card) => {
    const mover = fleet.put(name, card, performance.now(), document.hidden);
    mover.watched = area === null || area.vendors.has(card.vendorId) || name === "area";
    layer.changed();
  };
  return {
    onEntered: (card) => {
      put(card);
      extra.onEntered?.(card);
    },
    onMoved: (card) => {
      put(card);
      // the same move arrives through several watches, and is counted once
      if (name === "view") samples.push([performance.now(), clock.now() - card.timestamp]);
      if (card.vendorId === chosen) extend(card);
    },
    onChanged: (card) => put(card),
    onLeft: (card) => {
      fleet.leave(name, card.vendorId);
      extra.onLeft?.(card);
      layer.changed();
    },
    onSnapshot: (vendors) => {
      answered = true;
      extra.onSnapshot?.(vendors);
      status();
      refreshSoon();
    },
    onError: (error) => (extra.onError ?? ((refused) => notice(refused.message)))(error),
  };
}

let area = null;
let chosen = null;
let following = false;
let follow = null;
let answered = false;
let edge = null;

/** The watch of the vendors in view; null while they are shown as bubbles. */
let view = null;
/** The watch of the counts in view; null while there are few vendors. */
let overview = null;
/** Whether `view` still watches the previous part of the map, as vendors are counted first. */
let behind = false;
/** The zoom at which `view` was last moved. */
let viewZoom = 0;
let hinted = false;

/** Returns the view with a margin; `clipped` if it exceeds the limit of a watch of vendors. */
function viewArea() {
  return boxAround(map.getCenter(), map.getBounds().pad(0.12), settings.maxExtent);
}

function wanted(more) {
  return { ...more, ...(panel.onlyOpen ? { open: true } : {}) };
}

function showVendors() {
  const { area: box, clipped } = viewArea();
  behind = false;
  viewZoom = map.getZoom();
  drawEdge(clipped ? box : null);
  hint(clipped);
  if (view !== null) return view.move(wanted({ area: box }));
  view = client.watch(
    wanted({ area: box }),
    handlers("view", {
      // a snapshot has only the first of many vendors; the others enter after it
      onEntered: () => view !== null && view.vendors.size > MANY && stopVendors(),
      onSnapshot: () => {
        overview?.close();
        overview = null;
        bubbles.show(new Map());
      },
    }),
    "view",
  );
}

/** Stops receiving vendors; those received stay on the map until their counts are known. */
function stopVendors() {
  view.close();
  view = null;
  showCounts();
}

function showCounts() {
  const bounds = map.getBounds();
  const size = map.getSize();
  const whole = bounds.getEast() - bounds.getWest() >= 360;
  const box = {
    ne: { lat: Math.min(90, bounds.getNorth()), long: whole ? 180 : wrapped(bounds.getEast()) },
    sw: { lat: Math.max(-90, bounds.getSouth()), long: whole ? -180 : wrapped(bounds.getWest()) },
  };
  const asked = wanted({ area: box, as: "counts", detail: Math.max(16, Math.min(400, Math.round((size.x * size.y) / 6_000))) });
  drawEdge(null);
  hint(false);
  if (overview !== null) return overview.move(asked);
  overview = client.watch(
    asked,
    {
      onCounts: (groups) => {
        answered = true;
        const total = sum(groups, "count");
        if (overview?.fresh && total <= FEW && !viewArea().clipped) {
          if (view === null || behind) showVendors();
        } else if (overview?.fresh) {
          view?.close();
          view = null;
          fleet.drop("view");
        }
        if (view === null || !view.fresh) bubbles.show(groups);
        status();
        refreshSoon();
      },
      onError: (error) => notice(error.message),
    },
    "overview",
  );
}

/** Shows a notice while the view is larger than the box of vendors. */
function hint(clipped) {
  if (clipped !== hinted) notice(clipped ? text("zoom-in") : "");
  hinted = clipped;
}

function sum(groups, name) {
  let total = 0;
  for (const group of groups.values()) total += group[name];
  return total;
}

function wrapped(long) {
  return ((((long + 180) % 360) + 360) % 360) - 180;
}

function drawEdge(box) {
  edge?.remove();
  edge = null;
  if (box === null) return;
  const east = box.ne.long < box.sw.long ? box.ne.long + 360 : box.ne.long;
  const corners = [[box.sw.lat, box.sw.long], [box.ne.lat, east]];
  edge = L.rectangle(corners, { className: "edge", weight: 1.5, dashArray: "5 5", fill: false, interactive: false }).addTo(map);
}

let moving;
function look() {
  clearTimeout(moving);
  moving = setTimeout(() => {
    const near = map.getZoom() >= STREET && !viewArea().clipped;
    // assumes the current density everywhere, to avoid receiving all vendors when zoomed out
    const expected = view === null ? 0 : view.vendors.size * 4 ** Math.max(0, viewZoom - map.getZoom());
    const few = view !== null && expected <= FEW && !viewArea().clipped;
    if (few || (near && overview === null && view === null)) showVendors();
    else {
      behind = view !== null;
      showCounts();
    }
    status();
    keep();
    refreshSoon();
  }, 120);
}
map.on("moveend", look);

// the URL

function here() {
  const { lat, lng } = map.getCenter();
  return { place: { zoom: map.getZoom(), center: [lat, wrapped(lng)] }, vendor: chosen, area: tool.area, open: panel.onlyOpen, query: panel.query };
}

/** Writes the state of the map into the URL, and stores it for the next visit. */
function keep() {
  const link = format(here());
  history.replaceState(null, "", link);
  remember("link", link);
}

/** Applies the state of a URL. */
function go(link, move) {
  panel.onlyOpen = link.open;
  panel.query = link.query;
  if (move && link.place !== null) map.setView(link.place.center, link.place.zoom, { animate: false });
  if (link.area !== null || tool.area !== null) tool.show(link.area);
  if (link.area !== null && link.place === null) map.fitBounds(tool.shape.getBounds().pad(0.2));
  if (link.vendor !== null || chosen !== null) choose(link.vendor, link.place === null);
  find();
  look();
}
addEventListener("hashchange", (event) => {
  // not location.hash, which `keep` may have overwritten since
  const { hash } = new URL(event.newURL);
  if (hash === "#list") return; // the skip link
  const link = parse(hash);
  if (link.token) {
    accessToken = token("token", hash);
    client.disconnect();
    client.connect();
  }
  go(link, true);
});

// the area tool

const tool = new AreaTool(map, settings, {
  onMode: (mode) => {
    by("tool-box").setAttribute("aria-pressed", String(mode === "box"));
    by("tool-circle").setAttribute("aria-pressed", String(mode === "circle"));
    notice(mode === null ? "" : text(`draw.${mode}`));
  },
  onArea: (drawn) => {
    by("tool-clear").hidden = drawn === null;
    if (drawn === null) {
      area?.close();
      area = null;
      fleet.drop("area");
      for (const mover of fleet.movers.values()) mover.watched = true;
      panel.area(null);
    } else if (area === null) {
      let quiet = true;
      area = client.watch(
        { area: drawn },
        handlers("area", {
          onEntered: (card) => quiet || panel.passed(card, "area.entered"),
          onLeft: (card) => {
            const mover = fleet.get(card.vendorId);
            if (mover !== undefined) mover.watched = false;
            if (!quiet) panel.passed(card, "area.left");
          },
          onSnapshot: () => {
            quiet = false;
            mark();
            say(panel.area(tool.area, [...area.vendors.values()], area.fresh));
          },
        }),
        "area",
      );
      mark();
    } else {
      area.move({ area: drawn });
      panel.log = [];
    }
    layer.changed();
    keep();
    refreshSoon();
  },
});

function mark() {
  for (const [vendorId, mover] of fleet.movers) mover.watched = area === null || area.vendors.has(vendorId);
  layer.changed();
}

// the search

let searching;
let found = null;

/** Searches vendors by name on the server, and watches those that are on the map. */
function find(more = null) {
  clearTimeout(searching);
  const query = panel.query;
  if (query === "") {
    found?.watch?.close();
    found = null;
    fleet.drop("search");
    return refreshSoon();
  }
  searching = setTimeout(async () => {
    const asked = new URLSearchParams({ query, limit: 40, ...(panel.onlyOpen ? { open: true } : {}), ...(more === null ? {} : { cursor: more }) });
    const headers = accessToken === null ? {} : { Authorization: `Bearer ${accessToken}` };
    const answer = await fetch(`/v1/vendors?${asked}`, { headers }).catch(() => null);
    if (query !== panel.query) return;
    const body = answer?.ok ? await answer.json() : { vendors: [], next: null };
    const cards = more === null ? body.vendors : [...(found?.cards ?? []), ...body.vendors];
    const vendors = cards.slice(0, 200).map((card) => card.vendorId);
    found = { cards, next: cards.length < 200 ? body.next : null, failed: answer?.ok !== true && answer?.status !== 400, watch: found?.watch };
    if (vendors.length === 0) {
      found.watch?.close();
      found.watch = undefined;
      fleet.drop("search");
    } else if (found.watch) found.watch.move({ vendors });
    else found.watch = client.watch({ vendors }, handlers("search"), "search");
    refresh();
  }, more === null ? SEARCH_AFTER : 0);
}

// the selected vendor

const panel = new Panel({
  onChoose: (vendorId, pan = false) => {
    walk = [];
    choose(vendorId, pan);
  },
  onGroup: (bubble) => bubbles.enter(bubble),
  onFollow: () => setFollowing(!following),
  onShare: () => void share(),
  onReplay: () => void replay(),
  onMore: () => find(found.next),
  onFilter: () => {
    find();
    look();
    refresh();
  },
});

let trailWords = "";
let trailOf = 0;
let replaying = null;

function choose(vendorId, pan = false) {
  if (vendorId === chosen) {
    if (pan) center(vendorId);
    return;
  }
  setFollowing(false);
  replaying?.close();
  follow?.close();
  follow = null;
  fleet.drop("chosen");
  chosen = vendorId;
  layer.chosen = vendorId;
  layer.trail = [];
  trailWords = "";
  trailOf += 1;
  panel.choose(null);
  if (settings.embed) parent.postMessage({ type: "venta-vendor", vendorId }, "*");
  if (vendorId !== null) {
    const known = fleet.get(vendorId)?.card;
    if (known !== undefined) showCard(known, pan);
    // it stays on the map when it leaves the view
    follow = client.watch({ vendors: [vendorId] }, handlers("chosen", { onSnapshot: () => shown(vendorId, pan) }), "chosen");
    void trail(vendorId, trailOf);
  }
  keep();
  layer.changed();
  refresh();
}

function showCard(card, pan) {
  panel.choose(card);
  if (pan) center(card.vendorId);
  if (!panel.root.classList.contains("up")) by("card").focus({ preventScroll: true });
  else panel.lift(false);
  say([card.name, text(card.open ? "state.open" : "state.closed"), text(card.online ? "state.online" : "state.offline")].join(", "));
}

/** Handles the server's answer whether the selected vendor is on the map. */
function shown(vendorId, pan) {
  if (vendorId !== chosen || panel.parts !== null) return;
  const card = fleet.get(vendorId)?.card;
  if (card !== undefined) showCard(card, pan);
  else panel.choose(found?.cards.find((one) => one.vendorId === vendorId) ?? { vendorId, name: vendorId, primaryImage: null });
}

function center(vendorId) {
  const mover = fleet.get(vendorId);
  if (mover === undefined) return;
  const to = unproject(mover.x, mover.y);
  // zoom in to a vendor that is far away or inside a bubble
  if (view === null || !map.getBounds().pad(1).contains(to)) map.setView(to, Math.max(15, map.getZoom()));
  else map.panTo(to);
}

function setFollowing(on) {
  following = on && chosen !== null;
  if (following) {
    center(chosen);
    layer.changed();
  }
  refresh();
}
map.on("dragstart", () => setFollowing(false));

/** Keeps the followed vendor in the middle of the map, in each frame. */
layer.onFrame = (now) => {
  const mover = following ? fleet.get(chosen) : undefined;
  if (mover === undefined || map._animatingZoom || map._panAnim?._inProgress) return;
  mover.at(now);
  const to = map.latLngToContainerPoint(unproject(mover.x, mover.y));
  const size = map.getSize();
  const off = [Math.round(to.x - size.x / 2), Math.round(to.y - size.y / 2)];
  if (off[0] !== 0 || off[1] !== 0) map.panBy(off, { animate: false });
};

async function share() {
  const url = new URL(format({ vendor: chosen }), location.origin).href;
  const { name } = fleet.get(chosen)?.card ?? {};
  try {
    if (navigator.share) await navigator.share({ title: name, url });
    else {
      await navigator.clipboard.writeText(url);
      notice(text("card.copied"), 2_000);
    }
  } catch {
    // the visitor closed the dialog
  }
}

/** Draws the vendor's trail of the last half hour from the stored history. */
async function trail(vendorId, mine) {
  if (!settings.pastIsPublic && accessToken === null) return void (trailWords = text("trail.owner"));
  const { OwnerOnly, point, read } = await import("./history.js");
  const now = clock.now();
  try {
    const locations = await read(vendorId, now - TRAIL, accessToken);
    if (mine !== trailOf || replaying !== null) return;
    // positions received live meanwhile continue it
    const until = locations.at(-1)?.timestamp ?? 0;
    layer.trail = [...locations.map(point), ...layer.trail.filter((one) => one[2] > until)];
    if (locations.length > 1) trailWords = text("trail", { span: span(now - locations[0].timestamp), positions: count(locations.length, "positions") });
  } catch (error) {
    if (!(error instanceof OwnerOnly)) throw error;
    if (mine === trailOf) trailWords = text("trail.owner");
  }
  layer.changed();
  refresh();
}

/** Opens the slider over today's stored positions. */
async function replay() {
  if (replaying !== null) return replaying.close();
  const { OwnerOnly, read, Replay } = await import("./history.js");
  const mine = trailOf;
  const midnight = new Date(clock.now()).setHours(0, 0, 0, 0);
  let locations = [];
  try {
    locations = await read(chosen, midnight, accessToken);
  } catch (error) {
    if (!(error instanceof OwnerOnly)) throw error;
    return notice(text("trail.owner"), NOTICE);
  }
  if (mine !== trailOf) return;
  if (locations.length === 0) return notice(text("replay.none"), NOTICE);
  setFollowing(false);
  replaying = new Replay(layer, locations, () => {
    replaying = null;
    layer.trail = [];
    layer.changed();
    void trail(chosen, trailOf);
  });
}

function extend(card) {
  if (replaying !== null) return;
  const points = layer.trail;
  const next = [...project(card.lat, card.long), card.timestamp];
  if (points.length > 0 && points.at(-1)[2] >= next[2]) return;
  // the drawn trail ends at the vendor's current place; it glides to this position
  const before = extend.next?.[0] === card.vendorId ? extend.next[1] : undefined;
  if (before !== undefined && (points.length === 0 || before[2] > points.at(-1)[2])) points.push(before);
  extend.next = [card.vendorId, next];
  if (points.length > 20_000) points.splice(0, 1_000);
}

// all vendors

/** Margin in degrees around the groups of each step: about a cell of a watch with 1,000 groups. */
const STEPS = [8, 0.6, 0.06];

/** Fits the map to the watched area, or to all vendors of the world. */
function fit() {
  if (tool.area !== null) return map.fitBounds(tool.shape.getBounds().pad(0.2));
  fitCounts(WORLD, 0);
}

/** Fits the map to the vendors of an area by their counts; if these are only a few cells wide, counts in more detail. */
function fitCounts(box, step) {
  const all = client.watch(
    { area: box, as: "counts", detail: 1_000 },
    {
      onCounts: (groups) => {
        all.close();
        const positions = [...groups.values()];
        if (positions.length === 0) return;
        const { south, west, north, east } = boundsOf(positions);
        const margin = STEPS[step];
        if (margin === undefined || Math.max(north - south, east - west) > 4 * margin) return fitTo(positions);
        const ne = { lat: Math.min(90, north + margin), long: wrapped(east + margin) };
        fitCounts({ ne, sw: { lat: Math.max(-90, south - margin), long: wrapped(west - margin) } }, step + 1);
      },
      onError: (error) => {
        all.close();
        notice(error.message, NOTICE);
      },
    },
  );
}

/** Returns the bounds of positions, across the antimeridian if that is shorter. */
function boundsOf(positions) {
  const longs = positions.map(({ long }) => long).sort((a, b) => a - b);
  const gaps = longs.map((long, at) => (at === 0 ? long + 360 - longs.at(-1) : long - longs[at - 1]));
  const west = longs[gaps.indexOf(Math.max(...gaps))];
  const lats = positions.map(({ lat }) => lat);
  const east = Math.max(...longs.map((long) => (long < west ? long + 360 : long)));
  return { south: Math.min(...lats), west, north: Math.max(...lats), east };
}

function fitTo(positions) {
  if (positions.length === 0) return;
  const { south, west, north, east } = boundsOf(positions);
  map.fitBounds([[south, west], [north, east]], { padding: [60, 60], maxZoom: 15 });
}

// the customer's position

const you = new Here(map, {
  onPosition: (first) => {
    if (first) map.setView(you.position, Math.max(15, map.getZoom()));
    refreshSoon();
  },
  onError: (words) => notice(words, NOTICE),
  onActive: (active) => {
    by("tool-locate").setAttribute("aria-pressed", String(active));
    refreshSoon();
  },
});

/** Returns the origin of distances: the customer, or the middle of the map. */
function from() {
  const { lat, lng } = map.getCenter();
  return you.position ?? [lat, lng];
}

// alerts

let alerts = null;
by("tool-alerts").addEventListener("click", async () => {
  const { Alerts } = await import("./alerts.js");
  alerts ??= new Alerts(() => accessToken, () => tool.area);
  await alerts.open();
});

// status and counts

function status() {
  by("tool-alerts").hidden = !settings.alerts || accessToken === null;
  const button = by("status");
  const { state } = client;
  const silent = Date.now() - (client.lastMessageAt ?? Date.now());
  let shown = "live";
  let words = text("status.live");
  if (state === "disconnected" && settings.tokenNeeded) [shown, words] = ["ended", text("status.sign-in")];
  else if (state === "failed" || state === "disconnected") [shown, words] = ["ended", text("status.ended")];
  else if (state !== "connected") [shown, words] = answered ? ["stale", text("status.stale", { age: millis(silent) })] : ["connecting", text("status.connecting")];
  else if (!answered) [shown, words] = ["connecting", text("status.loading")];
  const lost = shown === "stale" || (shown === "ended" && answered);
  document.body.classList.toggle("stale-map", lost);
  by("offline").hidden = !lost;
  if (lost) put("offline", text("stale.list", { age: ago(silent) }));
  if (button.dataset.state !== shown && shown !== "connecting") say(text(`said.${shown}`));
  button.dataset.state = shown;
  put("status-text", words);
}
by("status").addEventListener("click", () => client.connect());

let noticed;
function notice(words, ms = 0) {
  clearTimeout(noticed);
  put("notice", words);
  by("notice").hidden = words === "";
  if (ms > 0) noticed = setTimeout(() => notice(""), ms);
}

function say(words) {
  if (words) by("said").textContent = words;
}

function inView() {
  const bounds = map.getBounds();
  const middle = map.getCenter().lng;
  const cards = [];
  for (const { card } of fleet.movers.values()) {
    const long = card.long + 360 * Math.round((middle - card.long) / 360);
    if (bounds.contains([card.lat, long]) && (!panel.onlyOpen || card.open)) cards.push(card);
  }
  return cards;
}

let order = [];
let saidAt = 0;
let said = "";

function refresh() {
  const cards = inView();
  const counted = view === null && overview !== null;
  const totals = counted
    ? [sum(overview.groups, "count"), sum(overview.groups, "open"), sum(overview.groups, "online")]
    : [cards.length, cards.filter((card) => card.open && card.online).length, cards.filter((card) => card.online).length];
  put("count-view", number(totals[0]));
  put("count-open", number(totals[1]));
  put("count-online", number(totals[2]));
  put("handle-text", count(totals[0], "vendors"));
  list(cards, counted);
  const now = performance.now();
  while (samples.length > 0 && samples[0][0] < now - WINDOW) samples.shift();
  put("rate", number(samples.length / (WINDOW / 1000), { maximumFractionDigits: samples.length < 50 ? 1 : 0 }));
  const delays = samples.map(([, delay]) => delay).filter((delay) => delay < OLDEST).sort((a, b) => a - b);
  put("delay", delays.length === 0 ? "–" : millis(delays[delays.length >> 1]));
  const card = chosen === null ? undefined : fleet.get(chosen)?.card;
  if (card !== undefined) {
    if (panel.parts === null) panel.choose(card);
    panel.refresh(card, following, distance(...from(), card.lat, card.long), trailWords);
  }
  if (area !== null) panel.area(tool.area, [...area.vendors.values()], area.fresh);
  // for screen readers: rarely, and only changes
  const words = text("said.count", { vendors: count(totals[0], "vendors"), open: totals[1] });
  if (answered && words !== said && now - saidAt > ANNOUNCE) {
    saidAt = now;
    said = words;
    say(words);
  }
}

const folded = (name) => name.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

function list(cards, counted) {
  const query = folded(panel.query);
  if (query !== "") {
    // matches in view immediately, the others when the server answers
    const matches = new Map(cards.filter((card) => folded(card.name).includes(query)).map((card) => [card.vendorId, card]));
    for (const card of found?.cards ?? []) matches.set(card.vendorId, fleet.get(card.vendorId)?.card ?? card);
    order = panel.show([...matches.values()], from(), chosen);
    if (found?.failed) panel.note(text("search.failed"));
    else if (found?.next) panel.note(text("search.more"), true);
    else if (found !== null && matches.size === 0) panel.note(text("search.none"));
  } else if (counted) {
    order = [];
    panel.showGroups(bubbles.bubbles, from(), ({ x, y }) => unproject(x, y));
  } else {
    order = panel.show(cards, from(), chosen);
    if (order.length === 0) panel.note(text("list.none"));
  }
}

let refreshing = false;
function refreshSoon() {
  if (refreshing) return;
  refreshing = true;
  setTimeout(() => {
    refreshing = false;
    refresh();
  }, 60);
}

// pointer and keys

map.on("click", ({ containerPoint }) => {
  if (tool.mode !== null) return;
  const mover = layer.near(containerPoint);
  const bubble = mover === null ? bubbles.near(containerPoint) : null;
  if (bubble !== null) bubbles.enter(bubble);
  else choose(mover?.card.vendorId ?? null);
});

const tip = element("div", { className: "tip", hidden: true, "aria-hidden": "true" });
map.getContainer().append(tip);
map.on("mousemove", ({ containerPoint }) => {
  const mover = tool.mode === null ? layer.near(containerPoint) : null;
  const bubble = tool.mode === null && mover === null ? bubbles.near(containerPoint) : null;
  map.getContainer().classList.toggle("pointing", mover !== null || bubble !== null);
  tip.hidden = mover === null || mover.card.vendorId === chosen;
  if (mover === null) return;
  if (tip.textContent !== mover.card.name) tip.textContent = mover.card.name;
  tip.style.left = `${mover.px}px`;
  tip.style.top = `${mover.py}px`;
});
map.on("mouseout movestart zoomstart", () => (tip.hidden = true));

/** The order of vendors for the keys J and K: that of the list at the first key, even if the map moves. */
let walk = [];

function next(step) {
  if (chosen === null || !walk.includes(chosen)) walk = order;
  const there = walk.filter((vendorId) => fleet.get(vendorId) !== undefined);
  if (there.length === 0) return;
  const index = there.indexOf(chosen);
  choose(there[index === -1 ? 0 : (index + step + there.length) % there.length], true);
}

const act = {
  a: fit,
  b: () => tool.use("box"),
  c: () => tool.use("circle"),
  x: () => tool.clear(),
  l: () => you.toggle(),
  d: () => say(settings.strings["said.theme"][colours.toggle()]),
  "?": () => by("help").showModal(),
  f: () => setFollowing(!following),
  j: () => next(1),
  k: () => next(-1),
  "[": () => tool.scale(0.8),
  "]": () => tool.scale(1.25),
  "/": () => {
    panel.lift(true);
    by("query").focus();
  },
};

document.addEventListener(
  "keydown",
  (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches("input[type=search], textarea");
    if (event.key === "Escape") {
      if (tool.mode !== null) tool.use(null);
      else if (typing) event.target.blur();
      else if (replaying !== null) replaying.close();
      else if (chosen !== null) choose(null);
      else panel.lift(false);
      return;
    }
    if (typing || event.target.matches("input[type=range]")) return;
    const arrow = { ArrowLeft: [-0.25, 0], ArrowRight: [0.25, 0], ArrowUp: [0, 0.25], ArrowDown: [0, -0.25] }[event.key];
    if (event.key === "Enter" && tool.mode !== null) tool.middle();
    else if (event.shiftKey && arrow !== undefined && tool.area !== null) tool.shift(...arrow);
    else if (act[event.key.toLowerCase()] !== undefined) act[event.key.toLowerCase()]();
    else return;
    // Leaflet handles the other keys
    event.preventDefault();
    event.stopPropagation();
  },
  true,
);
for (const [id, key] of Object.entries({ box: "b", circle: "c", clear: "x", locate: "l", fit: "a", theme: "d", help: "?" })) {
  by(`tool-${id}`).addEventListener("click", act[key]);
}

// start

client.connect();
void clock.ask();
setInterval(() => {
  performance.clearResourceTimings(); // the browser keeps a limited number, and the clock needs new ones
  void clock.ask();
}, 300_000);
setInterval(status, 500);
setInterval(() => document.hidden || refresh(), 1_000);
document.addEventListener("visibilitychange", () => document.hidden || (layer.changed(), refresh()));
layer.changed();
go(last, false);
void you.resume();

/** For tests and debugging: the state, and each vendor's currently drawn position. */
globalThis.liveMap = {
  map,
  client,
  fleet,
  layer,
  bubbles,
  tool,
  you,
  get view() {
    return view ?? overview;
  },
  get replaying() {
    return replaying;
  },
  positions() {
    const now = performance.now();
    return Object.fromEntries(
      [...fleet.movers].map(([vendorId, mover]) => {
        const moves = mover.at(now);
        return [vendorId, [...unproject(mover.x, mover.y), moves]];
      }),
    );
  },
};
performance.mark("map-interactive");
