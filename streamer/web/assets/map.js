/** The live map: puts its parts together. What is true comes from the client; the parts show it. */

import { CustomerClient } from "/client/venta.js";
import { AreaTool, boxAround } from "./area-tool.js";
import { Fleet, project, unproject } from "./fleet.js";
import { FleetLayer } from "./fleet-layer.js";
import { ground } from "./land.js";
import { ago, by, clock, count, element, millis, remember, remembered, settings, theme, token } from "./page.js";
import { Panel } from "./panel.js";

const { L } = globalThis;
const TRAIL = 30 * 60_000;
const TRAIL_PAGE = 2_000;
const TRAIL_PAGES = 5;
/** Positions of the last seconds, from which rate and delay are told. */
const WINDOW = 5_000;
const OLDEST = 60_000;
const ANNOUNCE = 15_000;

// the map

function place() {
  const parts = /^#(\d+(?:\.\d+)?)\/(-?\d+(?:\.\d+)?)\/(-?\d+(?:\.\d+)?)$/.exec(location.hash || `#${remembered("place")}`);
  if (parts === null) return { center: settings.center, zoom: 13 };
  return { center: [Number(parts[2]), Number(parts[3])], zoom: Number(parts[1]) };
}

const accessToken = token("token");
const opened = place();
const map = L.map("map", {
  center: opened.center,
  zoom: opened.zoom,
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
L.control.scale({ position: "bottomleft", imperial: false }).addTo(map);
L.control.zoom({ position: "bottomright" }).addTo(map);

const fleet = new Fleet();
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
  recolour();
});

// what is watched

let accessGiven = accessToken;
const client = new CustomerClient(location.origin, {
  getToken: ({ refresh }) => askToken(refresh),
  silence: 10_000,
  answerTimeout: 5_000,
  maxDelay: 10_000,
  onState: () => status(),
  onError: (error) => complain(error),
});

/** The token; asked for where it is needed, or was refused. */
function askToken(refused) {
  if (accessGiven !== null && !refused) return accessGiven;
  if (!settings.tokenNeeded && accessGiven === null) return null;
  const dialog = by("token-dialog");
  if (refused) by("token-why").textContent = "The token was refused, or has expired. Another one is needed.";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    by("token-form").onsubmit = (event) => {
      event.preventDefault();
      accessGiven = by("token").value.trim();
      remember("token", accessGiven);
      dialog.close();
      resolve(accessGiven);
    };
    dialog.oncancel = (event) => event.preventDefault();
  });
}

const samples = [];

/** What one watch tells goes into the fleet under its name. */
function handlers(name, extra = {}) {
  const put = (card) => {
    const mover = fleet.put(name, card, performance.now(), document.hidden);
    mover.watched = area === null || area.vendors.has(card.vendorId) || name === "area";
    layer.changed();
    return mover;
  };
  return {
    onEntered: (card) => {
      put(card);
      extra.onEntered?.(card);
    },
    onMoved: (card) => {
      put(card);
      // the same move comes through each watch that sees it: counted once
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
      extra.onSnapshot?.(vendors);
      status();
      refreshSoon();
    },
    onError: (error) => extra.onError?.(error),
  };
}

/** What lies in the map's view, and a little around it. */
function viewArea() {
  return boxAround(map.getCenter(), map.getBounds().pad(0.12), settings.maxExtent);
}

let area = null;
let chosen = null;
let following = false;
let follow = null;
let edge = null;
let firstSnapshot = false;

const view = client.watch(
  { area: viewArea().area },
  handlers("view", { onSnapshot: () => (firstSnapshot = true), onError: (error) => notice(error.message) }),
  "view",
);

let moving;
function look() {
  clearTimeout(moving);
  moving = setTimeout(() => {
    const { area: asked, clipped } = viewArea();
    edge?.remove();
    edge = null;
    if (clipped) {
      edge = L.rectangle(
        [
          [asked.sw.lat, asked.sw.long],
          [asked.ne.lat, asked.ne.long < asked.sw.long ? asked.ne.long + 360 : asked.ne.long],
        ],
        { className: "edge", weight: 1.5, dashArray: "5 5", fill: false, interactive: false },
      ).addTo(map);
    }
    notice(clipped ? "Zoom in: vendors are shown in the middle only" : "");
    view.move({ area: asked, ...(panel.onlyOpen ? { open: true } : {}) });
    status();
    const { lat, lng } = map.getCenter();
    const here = `${map.getZoom()}/${lat.toFixed(5)}/${lng.toFixed(5)}`;
    history.replaceState(null, "", `#${here}`);
    remember("place", here);
    refreshSoon();
  }, 120);
}
map.on("moveend", look);

// the area tool

const tool = new AreaTool(map, settings, {
  onMode: (mode) => {
    by("tool-box").setAttribute("aria-pressed", String(mode === "box"));
    by("tool-circle").setAttribute("aria-pressed", String(mode === "circle"));
    notice(mode === null ? "" : mode === "box" ? "Drag over the map, or press Enter" : "Drag from the middle of the circle, or press Enter");
  },
  onArea: (wanted) => {
    by("tool-clear").hidden = wanted === null;
    if (wanted === null) {
      area?.close();
      area = null;
      fleet.drop("area");
      for (const mover of fleet.movers.values()) mover.watched = true;
      panel.area(null);
    } else if (area === null) {
      let quiet = true;
      area = client.watch(
        { area: wanted },
        handlers("area", {
          onEntered: (card) => quiet || panel.passed(card, "came in"),
          onLeft: (card) => {
            const mover = fleet.get(card.vendorId);
            if (mover !== undefined) mover.watched = false;
            if (!quiet) panel.passed(card, "went out");
          },
          onSnapshot: () => {
            quiet = false;
            mark();
            say(panel.area(tool.area, [...area.vendors.values()], area.fresh));
          },
          onError: (error) => notice(error.message),
        }),
        "area",
      );
      mark();
    } else {
      area.move({ area: wanted });
      panel.log = [];
    }
    layer.changed();
    refreshSoon();
  },
});

function mark() {
  for (const [vendorId, mover] of fleet.movers) mover.watched = area === null || area.vendors.has(vendorId);
  layer.changed();
}

// the chosen vendor

const panel = new Panel({
  onChoose: (vendorId, pan = false) => {
    walk = [];
    choose(vendorId, pan);
  },
  onFollow: () => setFollowing(!following),
  onFilter: () => {
    look();
    refresh();
  },
});

const OWNERS = "Its way from now on; what was before is its owner’s.";
let trailWord = "";
let trailOf = 0;

function choose(vendorId, pan = false) {
  if (vendorId === chosen) {
    if (pan) center(vendorId);
    return;
  }
  setFollowing(false);
  follow?.close();
  follow = null;
  fleet.drop("chosen");
  chosen = vendorId;
  layer.chosen = vendorId;
  layer.trail = [];
  trailWord = "";
  trailOf += 1;
  const card = vendorId === null ? null : (fleet.get(vendorId)?.card ?? null);
  panel.choose(card);
  if (card !== null) {
    // it stays on the map when it leaves the view
    follow = client.watch({ vendors: [vendorId] }, handlers("chosen"), "chosen");
    void trail(vendorId, trailOf);
    if (pan) center(vendorId);
    if (!panel.root.classList.contains("up")) by("card").focus({ preventScroll: true });
    else panel.lift(false);
    say(`${card.name}, ${card.open ? "open" : "closed"}, ${card.online ? "online" : "offline"}`);
  }
  layer.changed();
  refresh();
}

function center(vendorId) {
  const mover = fleet.get(vendorId);
  if (mover !== undefined) map.panTo(unproject(mover.x, mover.y));
}

function setFollowing(wanted) {
  following = wanted && chosen !== null;
  if (following) {
    center(chosen);
    layer.changed();
  }
  refresh();
}
map.on("dragstart", () => setFollowing(false));

/** The map goes along with the vendor that is followed, frame by frame. */
layer.onFrame = (now) => {
  const mover = following ? fleet.get(chosen) : undefined;
  if (mover === undefined || map._animatingZoom || map._panAnim?._inProgress) return;
  mover.at(now);
  const to = map.latLngToContainerPoint(unproject(mover.x, mover.y));
  const size = map.getSize();
  const off = [Math.round(to.x - size.x / 2), Math.round(to.y - size.y / 2)];
  if (off[0] !== 0 || off[1] !== 0) map.panBy(off, { animate: false });
};

/** Where the vendor came by in the last half hour, from the stored history. */
async function trail(vendorId, number) {
  if (!settings.pastIsPublic && accessGiven === null) {
    trailWord = OWNERS;
    return;
  }
  const now = clock.now();
  const found = [];
  let cursor = null;
  for (let page = 0; page < TRAIL_PAGES; page += 1) {
    const query = new URLSearchParams({ from: Math.round(now - TRAIL), limit: TRAIL_PAGE, ...(cursor === null ? {} : { cursor }) });
    let answer;
    try {
      answer = await fetch(`/v1/vendors/${encodeURIComponent(vendorId)}/locations?${query}`, {
        headers: { Accept: "application/json", ...(accessGiven === null ? {} : { Authorization: `Bearer ${accessGiven}` }) },
      });
    } catch {
      break;
    }
    if (number !== trailOf) return;
    if (!answer.ok) {
      trailWord = answer.status === 401 || answer.status === 403 ? OWNERS : "";
      refresh();
      return;
    }
    const { locations, next } = await answer.json();
    found.push(...locations);
    cursor = next ?? null;
    if (cursor === null) break;
  }
  if (number !== trailOf) return;
  // what came live meanwhile goes on from there
  const last = found.at(-1)?.timestamp ?? 0;
  layer.trail = [...found.map(at), ...layer.trail.filter((point) => point[2] > last)];
  if (found.length > 1) trailWord = `The way of the last ${ago(now - found[0].timestamp).replace(" ago", "")}: ${count(found.length, "stored fix", "stored fixes")}.`;
  layer.changed();
  refresh();
}

function at({ lat, long, timestamp }) {
  return [...project(lat, long), timestamp];
}

function extend(card) {
  const points = layer.trail;
  const point = at(card);
  if (points.length > 0 && points.at(-1)[2] >= point[2]) return;
  // the end of the drawn way is where the vendor is now; this fix is where it glides to
  const [before] = extend.next?.[0] === card.vendorId ? [extend.next[1]] : [];
  if (before !== undefined && (points.length === 0 || before[2] > points.at(-1)[2])) points.push(before);
  extend.next = [card.vendorId, point];
  if (points.length > 20_000) points.splice(0, 1_000);
}

// what is told

function status() {
  const button = by("status");
  const { state } = client;
  let shown = "live";
  let text = "Live";
  if (state === "ended") [shown, text] = ["ended", "Stopped"];
  else if (state !== "open") {
    shown = firstSnapshot ? "stale" : "connecting";
    text = firstSnapshot ? `Stale · ${millis(Date.now() - (client.heard ?? Date.now()))}` : "Connecting…";
  } else if (!view.fresh && !firstSnapshot) [shown, text] = ["connecting", "Loading…"];
  document.body.classList.toggle("stale-map", shown === "stale" || shown === "ended");
  if (button.dataset.state !== shown) {
    if (shown === "stale") say("The connection is lost. The map shows what was last known.");
    if (shown === "live") say("The map is live.");
    if (shown === "ended") say("The server ended the connection. Press the status button to try again.");
  }
  button.dataset.state = shown;
  if (by("status-text").textContent !== text) by("status-text").textContent = text;
}
by("status").addEventListener("click", () => (client.state === "ended" ? client.start() : client.retry()));

function complain(error) {
  if (error.id === undefined) notice(error.message);
}

let noticed;
function notice(text) {
  clearTimeout(noticed);
  by("notice").textContent = text;
  by("notice").hidden = text === "";
}

function say(text) {
  if (text) by("said").textContent = text;
}

function inView() {
  const bounds = map.getBounds();
  const cards = [];
  for (const { card } of fleet.movers.values()) {
    const long = card.long + 360 * Math.round((map.getCenter().lng - card.long) / 360);
    if (bounds.contains([card.lat, long])) cards.push(card);
  }
  return cards;
}

let order = [];
let toldAt = 0;
let told = "";

function refresh() {
  const cards = inView();
  const shown = panel.onlyOpen ? cards.filter((card) => card.open) : cards;
  const { lat, lng } = map.getCenter();
  order = panel.show(shown, [lat, lng], chosen, edge !== null);
  put("count-view", shown.length.toLocaleString("en"));
  put("count-open", shown.filter((card) => card.open && card.online).length.toLocaleString("en"));
  put("count-online", shown.filter((card) => card.online).length.toLocaleString("en"));
  const now = performance.now();
  while (samples.length > 0 && samples[0][0] < now - WINDOW) samples.shift();
  put("rate", samples.length === 0 ? "0" : (samples.length / (WINDOW / 1000)).toFixed(samples.length < 50 ? 1 : 0));
  const delays = samples.map(([, delay]) => delay).filter((delay) => delay < OLDEST).sort((a, b) => a - b);
  put("delay", delays.length === 0 ? "–" : millis(delays[delays.length >> 1]));
  const card = chosen === null ? undefined : fleet.get(chosen)?.card;
  if (card !== undefined) panel.refresh(card, following, trailWord);
  if (area !== null) panel.area(tool.area, [...area.vendors.values()], area.fresh);
  // for those who hear: now and then, and only when it is something new
  const words = `${count(shown.length, "vendor")} in view, ${shown.filter((one) => one.open).length} open`;
  if (firstSnapshot && words !== told && now - toldAt > ANNOUNCE) {
    toldAt = now;
    told = words;
    say(words);
  }
}

function put(id, text) {
  const node = by(id);
  if (node.textContent !== text) node.textContent = text;
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
  choose(mover?.card.vendorId ?? null);
});

const tip = element("div", { className: "tip", hidden: true, "aria-hidden": "true" });
map.getContainer().append(tip);
map.on("mousemove", ({ containerPoint }) => {
  const mover = tool.mode === null ? layer.near(containerPoint) : null;
  map.getContainer().classList.toggle("pointing", mover !== null);
  tip.hidden = mover === null || mover.card.vendorId === chosen;
  if (mover === null) return;
  if (tip.textContent !== mover.card.name) tip.textContent = mover.card.name;
  tip.style.left = `${mover.px}px`;
  tip.style.top = `${mover.py}px`;
});
map.on("mouseout movestart zoomstart", () => (tip.hidden = true));

/** The order in which the keys go from vendor to vendor: the list's when they began, though the map moves meanwhile. */
let walk = [];

function next(step) {
  if (chosen === null || !walk.includes(chosen)) walk = order;
  const there = walk.filter((vendorId) => fleet.get(vendorId) !== undefined);
  if (there.length === 0) return;
  const index = there.indexOf(chosen);
  choose(there[index === -1 ? 0 : (index + step + there.length) % there.length], true);
}

const act = {
  b: () => tool.use("box"),
  c: () => tool.use("circle"),
  x: () => tool.clear(),
  l: () => map.locate({ setView: true, maxZoom: 15 }),
  d: () => say(`The map is ${colours.toggle()} now.`),
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
      else if (chosen !== null) choose(null);
      else panel.lift(false);
      return;
    }
    if (typing) return;
    const arrow = { ArrowLeft: [-0.25, 0], ArrowRight: [0.25, 0], ArrowUp: [0, 0.25], ArrowDown: [0, -0.25] }[event.key];
    if (event.key === "Enter" && tool.mode !== null) tool.middle();
    else if (event.shiftKey && arrow !== undefined && tool.area !== null) tool.shift(...arrow);
    else if (act[event.key.toLowerCase()] !== undefined) act[event.key.toLowerCase()]();
    else return;
    // Leaflet's own keys are the others
    event.preventDefault();
    event.stopPropagation();
  },
  true,
);
for (const [id, key] of [["box", "b"], ["circle", "c"], ["clear", "x"], ["locate", "l"], ["theme", "d"], ["help", "?"]]) {
  by(`tool-${id}`).addEventListener("click", act[key]);
}
map.on("locationerror", ({ message }) => {
  notice(`Where you are could not be told: ${message}`);
  noticed = setTimeout(() => notice(""), 5_000);
});

// and off it goes

client.start();
void clock.ask();
setInterval(() => {
  performance.clearResourceTimings(); // which the browser keeps a number of only, and the clock needs its own
  void clock.ask();
}, 300_000);
setInterval(status, 500);
setInterval(() => document.hidden || refresh(), 1_000);
document.addEventListener("visibilitychange", () => document.hidden || (layer.changed(), refresh()));
layer.changed();
look();

/** For tests, and for those who look into the page: what it holds, and where each vendor is drawn just now. */
globalThis.liveMap = {
  map,
  client,
  fleet,
  layer,
  view,
  tool,
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
