/** The vendor page: measures a phone's positions, keeps and uploads them, and shows those not stored yet. */

import { expiry, IndexedDbQueue, VendorClient } from "/client/venta.js";
import { ago, by, count, element, metres, number, put, remember, remembered, speed, text, theme, token, wind } from "./page.js";

/** Maximum number of waiting positions that are listed. */
const LISTED = 5;
/** A position within this distance of the last, in metres, is reported only every PARKED ms. */
const NEAR = 3;
const PARKED = 15_000;
/** A position with a worse accuracy than this, in metres, is not reported. */
const COARSEST = 500;
/** Messages for closes by the server, by close code. */
const ENDED = { 4401: "vendor.expired", 4403: "vendor.none", 4404: "vendor.none", 4429: "vendor.elsewhere" };

theme();

let access = token("vendor-token");
let client = null;
let measuring = null;
let lock = null;
let last = null;
/** Errors of signing in, of the connection, and of measuring; each is resolved separately. */
let refused = "";
let failed = "";
let lost = "";
let unnamed = null;

// signing in

/** Exchanges the code of a sign-in link (`#code=…`) for a token. */
async function signIn() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code === null) return;
  let answer;
  try {
    answer = await fetch("/v1/sign-in", { method: "POST", body: JSON.stringify({ code }), headers: { "Content-Type": "application/json" } });
  } catch {
    answer = null;
  }
  if (answer === null || answer.status >= 500) {
    refused = text("vendor.unreachable");
    setTimeout(() => void signIn(), 3_000);
    return show();
  }
  history.replaceState(null, "", location.pathname + location.search);
  const { token: given, vendorId, detail = "" } = await answer.json();
  if (answer.ok) {
    refused = "";
    access = given;
    remember("vendor-token", given);
    remember("vendor-id", vendorId);
    return void be();
  }
  const reason = answer.status === 404 ? "none" : detail.includes("used") ? "used" : detail.includes("expired") ? "late" : "invalid";
  refused = text(`vendor.${reason}`);
  show();
}
addEventListener("hashchange", () => void signIn());

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

by("forget").addEventListener("click", () => signOut(""));

async function signOut(why) {
  stopMeasuring();
  const before = client;
  client = null;
  access = null;
  refused = why;
  failed = "";
  remember("vendor-token", null);
  by("token").value = "";
  await before?.disconnect();
  show();
}

/** Connects as the vendor; uploads the queue of an earlier run immediately. */
async function be() {
  await client?.disconnect();
  failed = refused = "";
  const vendorId = remembered("vendor-id") ?? undefined;
  const mine = (client = new VendorClient(location.origin, {
    vendorId,
    // one queue per user, as pings must not be uploaded for another user
    queue: globalThis.indexedDB ? new IndexedDbQueue(`venta-pings-${subject(access)}-${vendorId ?? ""}`) : undefined,
    getToken: () => access,
    onState: (state, { code, reason } = {}) => {
      if (mine !== client) return;
      failed = "";
      if (state === "failed") {
        stopMeasuring();
        const several = /vendors: name one/.test(reason ?? "");
        failed = several ? text("vendor.several") : code in ENDED ? text(ENDED[code]) : `${reason} (${code})`;
        by("by-token").open = by("by-token").open || several;
      }
      show();
    },
    onHello: ({ vendorId: own }) => void named(own),
    onQueue: show,
    onStored: () => {
      // a vendor has a card only from its first position on
      if (unnamed !== null) void named(unnamed);
      show();
    },
    onRejected: (_, { message }) => {
      failed = text("vendor.refused-position", { message });
      show();
    },
    onDropped: show,
    onError: ({ message }) => {
      failed = message;
      show();
    },
  }));
  show();
  await connect();
}

async function connect() {
  try {
    await client.connect();
  } catch (error) {
    failed = text("vendor.storage", { message: error?.message ?? String(error) });
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
    // unless it was changed on this device meanwhile
    if (client?.status === null) by("open").checked = open;
  }
  show();
}

// measuring

by("report").addEventListener("click", () => (measuring === null ? startMeasuring() : stopMeasuring()));

function startMeasuring() {
  if (!("geolocation" in navigator)) {
    lost = text("vendor.unsupported");
    return show();
  }
  failed = lost = "";
  // disconnected: the browser refused the storage
  if (client.state === "failed" || client.state === "disconnected") void connect();
  measuring = navigator.geolocation.watchPosition(measured, unmeasured, { enableHighAccuracy: true, maximumAge: 1_000, timeout: 30_000 });
  void stayAwake();
  show();
}

function stopMeasuring() {
  if (measuring !== null) navigator.geolocation.clearWatch(measuring);
  measuring = null;
  if (lost !== text("vendor.blocked")) lost = "";
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
    lost = text("vendor.coarse", { accuracy: metres(fix.accuracy) });
  } else if (!near || timestamp - last.timestamp >= PARKED) {
    last = fix;
    void client.ping(fix);
  }
  showFix(fix);
  show();
}

function unmeasured({ code, message }) {
  const key = { 1: "blocked", 2: "unavailable", 3: "timeout" }[code];
  lost = key === undefined ? message : text(`vendor.${key}`);
  if (code === 1) stopMeasuring();
  show();
}

/** Keeps the screen on, as a sleeping phone measures no positions. */
async function stayAwake() {
  try {
    lock = await navigator.wakeLock?.request("screen");
    lock?.addEventListener("release", () => show());
  } catch {
    lock = null; // the system may refuse, for example with a low battery
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

// display

function showFix(fix) {
  put("position", `${fix.lat.toFixed(5)}, ${fix.long.toFixed(5)}`);
  put("accuracy", `± ${metres(Math.max(10, fix.accuracy))}`);
  put("speed", fix.speed === undefined ? "–" : speed(fix.speed));
  put("heading", fix.heading === undefined ? "–" : wind(fix.heading));
  by("on-map").href = `/#16/${fix.lat.toFixed(5)}/${fix.long.toFixed(5)}`;
}

function show() {
  const state = client?.state ?? "disconnected";
  const reporting = measuring !== null;
  const waiting = client === null ? [] : [...client.waiting.keys()].sort((a, b) => b - a);
  const [kind, word] = {
    connected: reporting ? ["live", "reporting"] : ["open", "connected"],
    connecting: ["connecting", "connecting"],
    reconnecting: ["stale", "offline"],
    failed: ["ended", "ended"],
    disconnected: ["stopped", "stopped"],
  }[state];
  by("status").dataset.state = kind;
  put("status-text", text(`vendor.status.${word}`));
  by("sign-in").hidden = access !== null && state !== "failed";
  by("known").hidden = access === null;
  by("report").disabled = client === null;
  by("report").setAttribute("aria-pressed", String(reporting));
  put("report", text(reporting ? "vendor.stop" : "vendor.start"));
  by("open").disabled = client === null;
  put("open-text", text(by("open").checked ? "vendor.open" : "vendor.closed"));
  put("waiting", number(waiting.length));
  const kept = () => text("vendor.queue.kept", { positions: count(waiting.length, "positions") });
  put("queue-text", waiting.length === 0 ? text("vendor.queue.empty") : state === "connected" ? text("vendor.queue.sending") : kept());
  const now = Date.now();
  const rows = waiting.slice(0, LISTED).map((timestamp) => {
    const { ping } = client.waiting.get(timestamp);
    const position = element("span", { textContent: `${ping.lat.toFixed(5)}, ${ping.long.toFixed(5)}` });
    return element("li", {}, position, element("span", { textContent: ago(now - timestamp) }));
  });
  if (waiting.length > LISTED) rows.push(element("li", {}, element("span", { textContent: text("vendor.queue.more", { n: waiting.length - LISTED }) })));
  by("queue").replaceChildren(...rows);
  put("stored", number(client?.stored ?? 0));
  put("rejected", number(client?.rejected ?? 0));
  put("dropped", number(client?.dropped ?? 0));
  put("measured", last === null ? "–" : ago(now - last.timestamp));
  put("screen", text(lock && !lock.released ? "vendor.screen.on" : "vendor.screen.sleeps"));
  const ends = access === null ? null : expiry(access);
  tell("problem", failed || lost || (ends !== null && ends < now ? text("vendor.expired") : ""));
  tell("sign-in-problem", refused);
}

function tell(id, words) {
  by(id).hidden = words === "";
  put(id, words);
}

setInterval(show, 1_000);
if (access === null) show();
else void be();
void signIn();

/** For tests and debugging. */
globalThis.vendorPage = { get client() { return client; } };
