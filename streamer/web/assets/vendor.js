/** Makes a phone's browser a vendor: measures, keeps, reports; shows what is not stored yet. */

import { expiry, IndexedDbQueue, VendorClient } from "/client/venta.js";
import { ago, by, count, element, metres, remember, remembered, theme, token, wind } from "./page.js";

/** Of those that wait, so many are listed. */
const LISTED = 5;
/** A parked truck is measured over and over: a fix this near the last, in metres, is reported only each 15 s. */
const NEAR = 3;
const PARKED = 15_000;
/** As long as the accuracy is worse than this, in metres, positions jump about too much to be shown to anybody. */
const COARSEST = 500;

const REFUSED = "This page may not know where the device is: allow it in the browser’s settings for this site.";

theme();

let access = token("vendor-token");
let client = null;
let measuring = null;
let lock = null;
let last = null;
/** What is wrong with the connection, and with the measuring: each is mended on its own. */
let failed = "";
let lost = "";
let unnamed = null;

// who

function subject(jwt) {
  try {
    return JSON.parse(atob(jwt.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).sub ?? "";
  } catch {
    return "";
  }
}

by("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  access = by("token").value.trim();
  remember("vendor-token", access);
  remember("vendor-id", by("vendor-id").value.trim() || null);
  void be();
});

by("forget").addEventListener("click", async () => {
  stopMeasuring();
  await client?.stop();
  client = null;
  access = null;
  remember("vendor-token", null);
  by("token").value = "";
  show();
  by("token").focus();
});

/** Connect as the vendor of the token; what an earlier run left in the queue goes out at once. */
async function be() {
  await client?.stop();
  failed = "";
  const vendorId = remembered("vendor-id") ?? undefined;
  const mine = (client = new VendorClient(location.origin, {
    vendorId,
    // each user's pings in a queue of their own: another's must not go out in this one's name
    queue: globalThis.indexedDB ? new IndexedDbQueue(`venta-pings-${subject(access)}-${vendorId ?? ""}`) : undefined,
    getToken: () => access,
    onState: (state, { code, reason } = {}) => {
      if (mine !== client) return;
      failed = state === "ended" ? `${reason || "The server ended the connection"} (${code})` : "";
      if (state === "ended" && code !== 4400) stopMeasuring();
      show();
    },
    onHello: ({ vendorId: own }) => void named(own),
    onQueue: show,
    onStored: () => {
      // a vendor has a card from its first position on
      if (unnamed !== null) void named(unnamed);
      show();
    },
    onRejected: (_, { message }) => {
      failed = `The server refused a position: ${message}`;
      show();
    },
    onDropped: show,
    onError: ({ message }) => {
      failed = message;
      show();
    },
  }));
  show();
  try {
    await mine.start();
  } catch (error) {
    failed = `The queue of this device can't be read: ${error?.message ?? error}`;
  }
  show();
}

async function named(vendorId) {
  by("known-id").textContent = vendorId;
  unnamed = vendorId;
  const answer = await fetch(`/v1/vendors/${encodeURIComponent(vendorId)}`, { headers: { Authorization: `Bearer ${access}` } }).catch(() => null);
  if (answer?.ok) {
    const { name, open } = await answer.json();
    unnamed = null;
    by("known-name").textContent = name;
    // unless it was said otherwise on this device meanwhile
    if (client?.status === null) by("open").checked = open;
  }
  show();
}

// where

by("report").addEventListener("click", () => (measuring === null ? startMeasuring() : stopMeasuring()));

function startMeasuring() {
  if (!("geolocation" in navigator)) {
    lost = "This browser tells no positions. Open this page over HTTPS.";
    return show();
  }
  failed = lost = "";
  if (client.state === "ended") void client.start();
  measuring = navigator.geolocation.watchPosition(measured, refused, { enableHighAccuracy: true, maximumAge: 1_000, timeout: 30_000 });
  void stayAwake();
  show();
}

function stopMeasuring() {
  if (measuring !== null) navigator.geolocation.clearWatch(measuring);
  measuring = null;
  if (lost !== REFUSED) lost = "";
  void lock?.release();
  lock = null;
  show();
}

function measured({ coords, timestamp }) {
  const fix = { lat: coords.latitude, long: coords.longitude, accuracy: coords.accuracy, timestamp };
  if (coords.heading !== null && !Number.isNaN(coords.heading)) fix.heading = coords.heading % 360;
  if (coords.speed !== null) fix.speed = coords.speed;
  const near = last !== null && Math.hypot(fix.lat - last.lat, (fix.long - last.long) * Math.cos((fix.lat * Math.PI) / 180)) * 111_195 < NEAR;
  lost = "";
  if (fix.accuracy > COARSEST) {
    lost = `The position is known to ${metres(fix.accuracy)} only: waiting for a better one.`;
  } else if (!near || timestamp - last.timestamp >= PARKED) {
    last = fix;
    void client.ping(fix);
  }
  showFix(fix);
  show();
}

function refused(error) {
  const words = {
    1: REFUSED,
    2: "The device can’t tell where it is just now.",
    3: "The device takes long to find out where it is.",
  };
  lost = words[error.code] ?? error.message;
  if (error.code === 1) stopMeasuring();
  show();
}

/** A phone that sleeps measures nothing. */
async function stayAwake() {
  try {
    lock = await navigator.wakeLock?.request("screen");
    lock?.addEventListener("release", () => show());
  } catch {
    lock = null; // low on battery: it may
  }
  show();
}
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && measuring !== null && (lock === null || lock?.released)) void stayAwake();
});

by("open").addEventListener("change", () => {
  client?.setOpen(by("open").checked);
  show();
});

// what is told

function showFix(fix) {
  put("position", `${fix.lat.toFixed(5)}, ${fix.long.toFixed(5)}`);
  put("accuracy", `± ${metres(Math.max(10, fix.accuracy))}`);
  put("speed", fix.speed === undefined ? "–" : `${Math.round(fix.speed * 3.6)} km/h`);
  put("heading", fix.heading === undefined ? "–" : wind(fix.heading));
  by("on-map").href = `/#16/${fix.lat.toFixed(5)}/${fix.long.toFixed(5)}`;
}

function show() {
  const state = client?.state ?? "stopped";
  const reporting = measuring !== null;
  const waiting = client === null ? [] : [...client.waiting.keys()].sort((a, b) => b - a);
  const shown = {
    open: reporting ? ["live", "Reporting"] : ["open", "Connected"],
    connecting: ["connecting", "Connecting…"],
    waiting: ["stale", "Offline"],
    ended: ["ended", "Refused"],
    stopped: ["stopped", "Not reporting"],
  }[state];
  by("status").dataset.state = shown[0];
  put("status-text", shown[1]);
  by("token-form").hidden = access !== null;
  by("known").hidden = access === null;
  by("report").disabled = client === null;
  by("report").setAttribute("aria-pressed", String(reporting));
  put("report", reporting ? "Stop reporting" : "Start reporting");
  by("open").disabled = client === null;
  put("open-text", by("open").checked ? "Open for business" : "Closed for business");
  put("waiting", waiting.length.toLocaleString("en"));
  put(
    "queue-text",
    waiting.length === 0
      ? "Nothing waits: all that was reported is stored."
      : state === "open"
        ? "On the way."
        : `${count(waiting.length, "position")} kept on this device until the server is reached.`,
  );
  const now = Date.now();
  const rows = waiting.slice(0, LISTED).map((timestamp) => {
    const { ping } = client.waiting.get(timestamp);
    return element(
      "li",
      {},
      element("span", { textContent: `${ping.lat.toFixed(5)}, ${ping.long.toFixed(5)}` }),
      element("span", { textContent: ago(now - timestamp) }),
    );
  });
  if (waiting.length > LISTED) rows.push(element("li", {}, element("span", { textContent: `and ${waiting.length - LISTED} more` })));
  by("queue").replaceChildren(...rows);
  put("stored", String(client?.stored ?? 0));
  put("rejected", String(client?.rejected ?? 0));
  put("dropped", String(client?.dropped ?? 0));
  put("measured", last === null ? "–" : ago(now - last.timestamp));
  put("screen", lock !== null && lock !== undefined && !lock.released ? "stays on" : "may sleep");
  const ends = access === null ? null : expiry(access);
  const problem = failed || lost || (ends !== null && ends < now ? "The token has expired: get another one." : "");
  by("problem").hidden = problem === "";
  put("problem", problem);
}

function put(id, text) {
  const node = by(id);
  if (node.textContent !== text) node.textContent = text;
}

setInterval(show, 1_000);
if (access === null) show();
else void be();

/** For tests, and for those who look into the page. */
globalThis.vendorPage = { get client() { return client; } };
