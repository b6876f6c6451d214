/**
 * The client of the Venta location streamer, for browsers, React Native and Node (20 or newer), without dependencies.
 *
 * `CustomerClient` keeps views of areas exact; `VendorClient` keeps each ping until it is stored. Both reconnect
 * automatically, by the protocol's close codes and the server's hints. The types are in venta.d.ts.
 */

const SUBPROTOCOL = "streamer.v1";
const LIVE_MAX_AGE = 600_000;
/** Maximum size of a client's message, well under the server's limit of 64 KiB. */
const MOST_BYTES = 48 << 10;
/** Nothing is sent while the socket buffers more bytes than this, so that on a slow link the newest ping goes first. */
const MOST_BUFFERED = 64 << 10;
/** A smaller difference between the clocks may be the network latency of the hello. */
const CLOCK_TOLERANCE = 2_000;
/** A smaller difference between the device's two clocks is not a step. */
const CLOCK_STEP = 1_000;
/** A timestamp this far ahead is always rejected; the reject shows that the connection is alive. */
const PROBE_AHEAD = 365 * 86_400_000;

/**
 * Whether to reconnect after a close code: "yes", "later" (after a longer wait), "token" (with a new token), or "no"
 * (it would fail the same way).
 * @param {number} code
 * @returns {"yes" | "later" | "token" | "no"}
 */
export function reconnectRule(code) {
  if (code === 1009 || code === 4400 || code === 4403 || code === 4404) return "no";
  if (code === 4401) return "token";
  return code === 4429 ? "later" : "yes";
}

/**
 * The wait before an attempt, ms: exponential backoff with full jitter, plus the server's `retryAfterMs`. The
 * `reconnectAfterMs` of a `bye` is used instead. The jitter spreads the clients of a lost server.
 * @param {number} code how the connection ended
 * @param {number} failures consecutive connections that failed or ended, from 1
 * @param {number} chance from 0 up to 1
 */
export function reconnectWait(code, failures, chance, { minDelay = 1_000, maxDelay = 30_000, reconnectAfterMs = null, retryAfterMs = 0 } = {}) {
  if (reconnectAfterMs !== null) return reconnectAfterMs;
  const spread = Math.round(chance * Math.min(maxDelay, minDelay * 2 ** Math.min(failures - 1, 30)));
  return spread + Math.max(retryAfterMs, reconnectRule(code) === "later" ? 5 * minDelay : 0);
}

/**
 * When a JWT expires, epoch ms; null if it has no expiry. Only the server verifies the signature.
 * @param {string} token
 */
export function expiry(token) {
  try {
    const claims = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const { exp } = JSON.parse(atob(claims));
    return typeof exp === "number" ? exp * 1000 : null;
  } catch {
    return null;
  }
}

/**
 * The time until a token that the server accepts is replaced, ms: a minute before it expires, or after 70 % of a short
 * lifetime; null: never. One that seems to have expired shows a wrong clock, and is not replaced each second.
 */
export function renewIn(token, now) {
  const ends = expiry(token);
  if (ends === null) return null;
  return ends <= now ? 30_000 : Math.max(ends - now - 60_000, (ends - now) * 0.7, 1_000);
}

/** Why a connection ended or a promise was rejected: `code` is a close code or an `ERR_…` of the protocol. */
export class VentaError extends Error {
  constructor(code, reason) {
    super(`${reason || "the connection ended"} (${code})`);
    this.name = "VentaError";
    this.code = code;
    this.reason = reason ?? "";
  }
}

const HELP = {
  ERR_UNAUTHORIZED: "pass getToken in the client's options",
  ERR_INVALID_TOKEN: "return a valid token from getToken",
  ERR_AREA_TOO_LARGE: 'watch a smaller area, or watch it with as: "counts"',
  1006: "check the URL and the network; the client keeps trying",
  4401: "return a valid token from getToken",
  4403: "this user does not own the vendor: check vendorId and the token",
  4404: "check vendorId",
};
const warned = new Set();

/** Logs an event without a handler on the console, once per code. */
function warn({ code, message, reason }) {
  if (warned.has(code)) return;
  warned.add(code);
  console.warn(`venta: ${message || reason} (${code})${HELP[code] ? `: ${HELP[code]}` : ""}`);
}

/** Events by `on` and `off`, and by callbacks of the options: `on("state", f)` is the same as `onState: f`. */
class Emitter {
  listeners = new Map();

  constructor(callbacks) {
    this.callbacks = callbacks;
  }

  on(name, listener, { signal } = {}) {
    if (signal?.aborted) return this;
    if (!this.listeners.has(name)) this.listeners.set(name, new Set());
    this.listeners.get(name).add(listener);
    signal?.addEventListener("abort", () => this.off(name, listener));
    return this;
  }

  off(name, listener) {
    this.listeners.get(name)?.delete(listener);
    return this;
  }

  /** Calls the handlers of an event; returns whether there was one. */
  emit(name, ...values) {
    const callback = this.callbacks[`on${name[0].toUpperCase()}${name.slice(1)}`];
    const handlers = [...(callback ? [callback] : []), ...(this.listeners.get(name) ?? [])];
    for (const handler of handlers) {
      try {
        handler(...values);
      } catch (error) {
        // a bug of the app must not end the connection
        (globalThis.reportError ?? console.error)(error);
      }
    }
    return handlers.length > 0;
  }
}

/** The base of both clients: events and state of a link. */
class Client extends Emitter {
  constructor(url, options, path, query) {
    super(options);
    this.options = options;
    this.link = new Link(socketUrl(url, path, query), options, this);
    options.signal?.addEventListener("abort", () => this.disconnect());
  }

  get state() {
    return this.link.state;
  }

  /** When the last message arrived, epoch ms by this device's clock; null if none has. */
  get lastMessageAt() {
    return this.link.heard;
  }

  /** Resolves when connected; rejects with a VentaError if the connection fails for good or `disconnect` ends it. */
  ready() {
    return this.settle((state) => state === "connected");
  }

  settle(done) {
    return new Promise((resolve, reject) => {
      const look = (state, { code = 1000, reason = "disconnected by the app" } = {}) => {
        if (done(state)) resolve();
        else if (state === "failed" || state === "disconnected") reject(new VentaError(code, reason));
        else return;
        this.off("state", look);
      };
      this.on("state", look);
      // before `connect`, wait for the call
      if (this.state !== "disconnected" || this.options.signal?.aborted) look(this.state, this.link.detail);
    });
  }

  became(state, detail) {
    const heard = this.emit("state", state, detail);
    if (!heard && (state === "failed" || (state === "reconnecting" && this.link.failures > 1))) warn(detail);
  }

  fail(error) {
    if (!this.emit("error", error)) warn(error);
  }

  failed(error) {
    this.fail({ type: "error", code: "ERR_UNAUTHORIZED", message: String(error?.message ?? error) });
  }
}

/** A socket that reconnects. The owner handles its messages; the link decides whether and when to connect. */
class Link {
  constructor(url, options, owner) {
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (this.WebSocket === undefined) {
      throw new TypeError(
        "no WebSocket here: use Node 22 or newer, start Node 20 with --experimental-websocket, " +
          "or pass one as options.WebSocket",
      );
    }
    this.url = url;
    this.owner = owner;
    this.signal = options.signal;
    this.getToken = options.getToken ?? null;
    this.delays = { minDelay: options.minDelay, maxDelay: options.maxDelay };
    this.connectTimeout = options.connectTimeout ?? 15_000;
    this.silence = options.silence ?? 30_000;
    this.answerTimeout = options.answerTimeout ?? 15_000;
    this.random = options.random ?? Math.random;
    this.state = "disconnected";
    this.heard = null;
    this.detail = {};
    this.appState = options.appState ?? null;
    this.failures = 0;
    this.socket = null;
    this.hint = null;
    this.floor = 0;
    this.refused = undefined;
    this.token = null;
    this.generation = 0;
    this.timers = {};
    this.wake = () => {
      if (this.state === "reconnecting" && globalThis.document?.visibilityState !== "hidden") this.kick();
    };
    this.away = () => {
      // the system detects a lost network sooner than the socket
      if (this.socket !== null) this.lost(this.generation, 1006, "the device is offline");
    };
  }

  /** Connects and stays connected; ends a wait for the next attempt. */
  connect() {
    if (this.signal?.aborted) return;
    if (this.state === "reconnecting") return this.kick();
    if (this.state !== "disconnected" && this.state !== "failed") return;
    globalThis.addEventListener?.("online", this.wake);
    globalThis.addEventListener?.("offline", this.away);
    globalThis.document?.addEventListener("visibilitychange", this.wake);
    this.foreground = this.appState?.addEventListener("change", (state) => state === "active" && this.wake());
    this.failures = 0;
    this.refused = undefined;
    void this.attempt();
  }

  disconnect() {
    this.quit("disconnected");
  }

  kick() {
    this.clear("retry");
    void this.attempt();
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  get open() {
    return this.state === "connected";
  }

  get buffered() {
    return this.socket?.bufferedAmount ?? 0;
  }

  become(state, detail = {}) {
    this.state = state;
    this.detail = detail;
    this.owner.became(state, detail);
  }

  after(name, ms, act) {
    this.clear(name);
    this.timers[name] = setTimeout(act, ms);
  }

  clear(name) {
    clearTimeout(this.timers[name]);
    delete this.timers[name];
  }

  async attempt() {
    const generation = ++this.generation;
    this.become("connecting");
    // the server's hints are for one wait only, also if there is no token for this attempt
    this.hint = null;
    this.floor = 0;
    let token = null;
    this.after("connect", this.connectTimeout, () => this.lost(generation, 1006, "no token in time"));
    if (this.getToken !== null) {
      try {
        token = (await this.getToken({ refresh: this.refused !== undefined })) ?? null;
      } catch (error) {
        if (generation === this.generation) this.retry(1006, `no token: ${error?.message ?? error}`);
        return;
      }
      if (generation !== this.generation) return;
    }
    if (token === this.refused) {
      this.quit("failed", { code: 4401, reason: this.reason || "the token was refused, and there is no other" });
      return;
    }
    this.token = token;
    this.reason = "";
    let socket;
    try {
      socket = new this.WebSocket(this.url, token === null ? [SUBPROTOCOL] : [SUBPROTOCOL, `bearer.${token}`]);
    } catch (error) {
      // a token with characters that are invalid in a header: the next attempt would fail the same way
      this.quit("failed", { code: 4400, reason: String(error?.message ?? error) });
      return;
    }
    this.socket = socket;
    this.after("connect", this.connectTimeout, () => this.lost(generation, 1006, "no answer to the handshake"));
    socket.onopen = () => {
      if (generation !== this.generation) return socket.close();
      this.heard = Date.now();
      this.owner.opened();
    };
    socket.onmessage = (event) => {
      if (generation === this.generation) this.took(generation, event.data);
    };
    socket.onclose = (event) => this.lost(generation, event.code, event.reason);
    // not every WebSocket reports its close after an error; those that do have done so after this delay
    socket.onerror = () => setTimeout(() => this.lost(generation, 1006, "the connection failed"), 50);
  }

  /** Called by the owner once the connection is established. */
  established() {
    this.clear("connect");
    this.refused = undefined;
    this.after("healthy", 5_000, () => (this.failures = 0));
    this.watchToken();
    this.listen(this.generation);
    this.become("connected");
  }

  took(generation, data) {
    this.heard = Date.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return this.lost(generation, 1006, "what came is not JSON");
    }
    if (typeof message?.type !== "string") return this.lost(generation, 1006, "what came is not a message");
    if (message.type === "bye") this.hint = message.reconnectAfterMs ?? null;
    else {
      // the server's last error may be the reason of a close, unless it is about one watch
      const said = message.type === "error" && message.id === undefined;
      this.reason = said ? message.message : "";
      this.floor = (said && message.retryAfterMs) || 0;
      this.owner.took(message);
    }
  }

  /** Requests an answer after a time without messages, to detect a dead connection. */
  listen(generation) {
    const look = () => {
      if (generation !== this.generation) return;
      const silent = Date.now() - this.heard;
      // negative: the clock was set back
      if (silent >= 0 && silent < this.silence) this.after("listen", this.silence - silent, look);
      else if (this.owner.probe()) {
        const { heard } = this;
        this.after("listen", this.answerTimeout, () => {
          if (this.heard === heard) this.lost(generation, 1006, `no answer within ${this.answerTimeout} ms`);
          else look();
        });
      } else this.after("listen", this.silence, look);
    };
    this.after("listen", this.silence, look);
  }

  /** Replaces a token before it expires, on the open connection. */
  watchToken() {
    const wait = this.token === null || this.getToken === null ? null : renewIn(this.token, Date.now());
    if (wait === null) return;
    const generation = this.generation;
    const renew = async () => {
      let token = null;
      try {
        token = (await this.getToken({ refresh: true })) ?? null;
      } catch (error) {
        if (generation === this.generation) this.owner.failed(error);
      }
      if (generation !== this.generation) return;
      if (token === null || token === this.token) return this.after("token", 5_000, renew);
      this.token = token;
      this.send({ type: "auth", token });
      this.watchToken();
    };
    this.after("token", Math.min(wait, 2 ** 31 - 1), renew);
  }

  lost(generation, code, reason) {
    if (generation !== this.generation || this.state === "reconnecting") return;
    this.closeSocket();
    reason = reason || this.reason;
    const wanted = reconnectRule(code);
    if (wanted === "no" || (wanted === "token" && this.getToken === null)) {
      this.quit("failed", { code, reason });
      return;
    }
    if (wanted === "token") {
      this.refused = this.token;
      this.reason = reason;
    }
    this.retry(code, reason);
  }

  retry(code, reason) {
    this.generation += 1;
    this.failures += 1;
    const asked = { ...this.delays, reconnectAfterMs: this.hint, retryAfterMs: this.floor };
    const wait = reconnectWait(code, this.failures, this.random(), asked);
    this.after("retry", wait, () => void this.attempt());
    this.become("reconnecting", { code, reason, retryInMs: wait });
  }

  closeSocket() {
    for (const name of Object.keys(this.timers)) this.clear(name);
    const socket = this.socket;
    this.socket = null;
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState < 2) {
      try {
        socket.close(1000);
      } catch {
        // the connection is closed anyway
      }
    }
  }

  quit(state, detail = {}) {
    this.generation += 1;
    this.closeSocket();
    globalThis.removeEventListener?.("online", this.wake);
    globalThis.removeEventListener?.("offline", this.away);
    globalThis.document?.removeEventListener("visibilitychange", this.wake);
    this.foreground?.remove();
    if (this.state !== state) this.become(state, detail);
  }
}

/** Builds the URL from strings, as React Native's URL is immutable and has no searchParams. */
function socketUrl(url, path, query = {}) {
  const parts = /^(http|ws)(s?):\/\/([^?#]+)(?:\?([^#]*))?/i.exec(String(url));
  if (parts === null) throw new TypeError(`the server's URL must begin with https:// or http://, not ${url}`);
  const given = Object.entries(query).filter(([, value]) => value != null);
  const pairs = [parts[4], ...given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`)].filter(Boolean);
  const search = pairs.length > 0 ? `?${pairs.join("&")}` : "";
  return `ws${parts[2].toLowerCase()}://${parts[3].replace(/\/+$/, "")}${path}${search}`;
}

/**
 * Exchanges the one-time code of a sign-in link for a token.
 * @param {string} url the server
 * @param {string} code the part of the link after `#code=`
 */
export async function signIn(url, code) {
  const answer = await fetch(`${String(url).replace(/\/+$/, "")}/v1/sign-in`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ code }),
  });
  if (!answer.ok) {
    // the server's problem document, or the answer of a proxy
    const { code = String(answer.status), detail = answer.statusText } = await answer.json().catch(() => ({}));
    throw new VentaError(code, detail);
  }
  return answer.json();
}

// customers

const PROBE_ID = "~probe";

/** One watched area or list; `vendors` is the view, by vendorId, as last reported by the server. */
export class Watch extends Emitter {
  constructor(client, id, wanted, handlers) {
    super(handlers);
    this.client = client;
    this.id = id;
    this.wanted = wanted;
    this.vendors = new Map();
    /** The groups by name, of a watch with `as: "counts"`. */
    this.groups = new Map();
    /** Whether the view is exact: a snapshot arrived on this connection. */
    this.fresh = false;
    this.answered = false;
    this.closed = false;
    /** The error with which the server refused the watch; null if it did not. */
    this.refused = null;
  }

  /** Changes what is watched; the old view stays until the snapshot. */
  move(wanted) {
    this.wanted = { ...wanted };
    this.fresh = false;
    this.refused = null;
    this.client.ask(this);
  }

  close() {
    this.client.drop(this);
  }

  /** Resolves with the vendors (or the groups) once the view is exact; rejects if the server refuses the watch. */
  ready() {
    return new Promise((resolve, reject) => {
      const held = () => (this.wanted.as === "counts" ? this.groups : this.vendors);
      if (this.fresh) return resolve(held());
      const closed = () => reject(new VentaError(1000, "the watch is closed"));
      if (this.closed) return closed();
      const refused = ({ code, message }) => reject(new VentaError(code, message));
      if (this.refused !== null) return refused(this.refused);
      const stop = new AbortController();
      const options = { signal: stop.signal };
      const done = (act, value) => (stop.abort(), act(value));
      const ended = (state, { code = 1000, reason = "disconnected by the app" } = {}) =>
        (state === "failed" || state === "disconnected") && done(reject, new VentaError(code, reason));
      // after a move the counts may still be those of the area before
      for (const name of ["snapshot", "counts"]) this.on(name, () => this.fresh && done(resolve, held()), options);
      this.on("error", (error) => error === this.refused && done(refused, error), options);
      this.on("closed", () => done(closed), options);
      this.client.on("state", ended, options);
      if (this.client.state === "failed") ended("failed", this.client.link.detail);
    });
  }

  /** Calls no handlers after `close`, which a handler may call before all events of a message were emitted. */
  emit(name, ...values) {
    return (!this.closed || name === "closed") && super.emit(name, ...values);
  }

  snapshot(cards) {
    const { wanted } = this;
    const gone = new Set(this.vendors.keys());
    for (const card of cards) {
      gone.delete(card.vendorId);
      this.upsert(card);
    }
    for (const vendorId of gone) this.leave(vendorId);
    this.answered = true;
    // a handler may have moved or closed the watch
    this.fresh = this.wanted === wanted && !this.closed;
    this.refused = null;
    this.emit("snapshot", this.vendors);
  }

  count(groups, all) {
    if (!all && !this.answered) return;
    if (all) {
      this.groups.clear();
      this.fresh = this.answered = true;
      this.refused = null;
    }
    for (const group of groups) {
      if (group.count === 0) this.groups.delete(group.group);
      else this.groups.set(group.group, group);
    }
    this.emit("counts", this.groups);
  }

  update(message) {
    if (!this.answered) return; // an update of an earlier watch with this id
    for (const card of message.entered ?? []) this.upsert(card);
    for (const fix of message.moved ?? []) this.shift(fix);
    for (const vendorId of message.left ?? []) this.leave(vendorId);
  }

  upsert(card) {
    const before = this.vendors.get(card.vendorId);
    this.vendors.set(card.vendorId, card);
    if (before === undefined) return this.emit("entered", card);
    if (["name", "open", "primaryImage", "online"].some((name) => before[name] !== card[name])) {
      this.emit("changed", card, before);
    }
    if (["timestamp", "lat", "long", "heading", "speed"].some((name) => before[name] !== card[name])) {
      this.emit("moved", card, before);
    }
  }

  shift(fix) {
    const before = this.vendors.get(fix.vendorId);
    if (before === undefined) return;
    const { heading: _, speed: __, ...kept } = before;
    const card = { ...kept, ...fix };
    this.vendors.set(fix.vendorId, card);
    this.emit("moved", card, before);
  }

  leave(vendorId) {
    const card = this.vendors.get(vendorId);
    if (this.vendors.delete(vendorId)) this.emit("left", card);
  }
}

/** A customer's client: watches whose views stay exact over reconnects. */
export class CustomerClient extends Client {
  constructor(url, options = {}) {
    super(url, options, "/v1/watch");
    this.watches = new Map();
    this.numbers = 0;
    /** Whether the server refused the watch of a probe on this connection, as no more are allowed. */
    this.full = false;
  }

  /** Connects and stays connected; ends a wait for the next attempt. */
  connect() {
    this.link.connect();
    return this;
  }

  disconnect() {
    this.link.disconnect();
  }

  watch(wanted, handlers = {}, id = `w${++this.numbers}`) {
    if (this.watches.has(id)) throw new RangeError(`there is a watch ${id} already: move it, or close it first`);
    handlers.signal?.addEventListener("abort", () => watch.close());
    const watch = new Watch(this, id, { ...wanted }, handlers);
    watch.closed = handlers.signal?.aborted === true; // an aborted signal sends no further event
    if (watch.closed) return watch;
    this.watches.set(id, watch);
    this.ask(watch);
    return watch;
  }

  // called by the link and the watches

  opened() {
    this.full = false;
    this.link.established();
    for (const watch of this.watches.values()) this.ask(watch);
  }

  ask(watch) {
    if (this.link.open && !watch.closed) this.link.send({ ...watch.wanted, type: "watch", id: watch.id });
  }

  drop(watch) {
    if (watch.closed) return;
    watch.closed = true;
    watch.fresh = false;
    this.full = false;
    this.watches.delete(watch.id);
    watch.emit("closed");
    if (this.link.open) this.link.send({ type: "unwatch", id: watch.id });
  }

  took(message) {
    if (message.id === PROBE_ID) {
      if (message.type === "snapshot") this.link.send({ type: "unwatch", id: PROBE_ID });
      this.full ||= message.type === "error";
      return;
    }
    const watch = this.watches.get(message.id);
    if (message.groups !== undefined) watch?.count(message.groups, message.type === "snapshot");
    else if (message.type === "snapshot") watch?.snapshot(message.vendors);
    else if (message.type === "update") watch?.update(message);
    else if (message.type === "error") {
      if (watch !== undefined && message.retryAfterMs !== undefined) {
        this.link.after(`watch ${watch.id}`, message.retryAfterMs, () => this.ask(watch));
      } else if (watch !== undefined) watch.refused = message;
      const heard = watch?.emit("error", message);
      if (!this.emit("error", message) && !heard) warn(message);
      return;
    }
    if (watch !== undefined && !watch.closed && watch.fresh) watch.emit("view", watch.vendors);
  }

  probe() {
    // after too many refused messages in a row the server closes the connection for good
    const watch = this.full ? [...this.watches.values()].find(({ fresh }) => fresh) : undefined;
    if (watch !== undefined) this.ask(watch);
    else this.link.send({ type: "watch", id: PROBE_ID, vendors: [PROBE_ID] });
    return true;
  }

  became(state, detail) {
    if (state !== "connected") for (const watch of this.watches.values()) [watch.fresh, watch.refused] = [false, null];
    super.became(state, detail);
  }
}

// vendors

/** A queue in memory, lost with the page or process: for tests and simulations. */
export class MemoryQueue {
  constructor() {
    this.pings = new Map();
  }

  async load() {
    return [...this.pings.values()];
  }

  async write(put, remove) {
    for (const timestamp of remove) this.pings.delete(timestamp);
    for (const ping of put) this.pings.set(ping.timestamp, ping);
  }

  async close() {}
}

/** A queue in the browser's IndexedDB; each vendor needs its own name. */
export class IndexedDbQueue {
  constructor(name = "streamer-pings") {
    this.name = name;
    this.database = null;
  }

  async open() {
    this.database ??= await new Promise((resolve, reject) => {
      const opening = indexedDB.open(this.name, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("pings", { keyPath: "timestamp" });
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
      opening.onblocked = () => reject(new Error(`${this.name} is open in another version of this page`));
    });
    return this.database;
  }

  /** Begins a transaction, on a new connection if the browser has closed this one, as phones do in the background. */
  async begin(...how) {
    const database = await this.open();
    try {
      return database.transaction("pings", ...how);
    } catch {
      this.database = null;
      return (await this.open()).transaction("pings", ...how);
    }
  }

  async load() {
    const store = (await this.begin()).objectStore("pings");
    return await new Promise((resolve, reject) => {
      const reading = store.getAll();
      reading.onsuccess = () => resolve(reading.result);
      reading.onerror = () => reject(reading.error);
    });
  }

  async write(put, remove) {
    const transaction = await this.begin("readwrite", { durability: "strict" });
    const store = transaction.objectStore("pings");
    for (const timestamp of remove) store.delete(timestamp);
    for (const ping of put) store.put(ping);
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  async close() {
    this.database?.close();
    this.database = null;
  }
}

/** The default queue without `options.queue`: one per vendor of a device. */
function defaultQueue({ vendorId }) {
  const name = vendorId == null ? "streamer-pings" : `streamer-pings-${vendorId}`;
  if (globalThis.indexedDB) return new IndexedDbQueue(name);
  console.warn(
    "venta: pings are kept in memory only and are lost when the app ends. Pass options.queue: a StorageQueue " +
      "(@venta/client/storage-queue, for AsyncStorage) or a FileQueue (@venta/client/file-queue, for Node)",
  );
  return new MemoryQueue();
}

/** A vendor's client: keeps each ping until the server has stored it; with a durable queue also over restarts. */
export class VendorClient extends Client {
  constructor(url, options = {}) {
    super(url, options, "/v1/vendor", { vendorId: options.vendorId });
    this.queue = options.queue ?? defaultQueue(options);
    this.maxQueue = options.maxQueue ?? 100_000;
    this.maxBatch = 500;
    /** The server's clock by the hello, and this device's clocks at that time; null before the first hello. */
    this.measured = null;
    this.vendorId = options.vendorId ?? null;
    /** The pings that are not acked yet, by timestamp. */
    this.waiting = new Map();
    this.unsent = [];
    this.sent = new Map();
    this.seq = 0;
    this.status = null;
    /** The newest timestamp taken from this device's clock rather than from the caller. */
    this.latest = 0;
    this.newestSent = 0;
    this.stored = 0;
    this.rejected = 0;
    this.dropped = 0;
    this.greeted = false;
    this.loaded = null;
    /** Whether the app wants to be connected. */
    this.wanted = false;
    this.turn = Promise.resolve();
    this.put = new Map();
    this.remove = new Set();
    this.writing = null;
    /** The corrected timestamps, by those that `ping` returned before the first hello. */
    this.corrected = new Map();
    /** Promises of `stored`, by timestamp: {resolve, reject}. */
    this.promised = new Map();
  }

  /** The number of pings that are not acked yet. */
  get size() {
    return this.waiting.size;
  }

  /** The server's clock minus this device's, ms; null before the first hello. */
  get clockOffset() {
    return this.measured && this.measured.offset - Math.min(0, this.clockStep());
  }

  /** Loads the queue, connects and stays connected; ends a wait for the next attempt. */
  connect() {
    this.wanted = true;
    return this.inTurn(async () => {
      if (this.wanted) await this.load();
      if (this.wanted) this.link.connect();
      return this;
    });
  }

  /** Closes the connection. Pings without an ack stay in the queue; resolves once they are written. */
  disconnect() {
    const opening = this.wanted && this.state === "disconnected";
    this.wanted = false;
    this.link.disconnect();
    if (opening) this.became("disconnected", {}); // ends the promises, although the link was never connecting
    return this.inTurn(async () => {
      await this.written();
      if (this.wanted) return;
      this.loaded = null;
      await this.queue.close();
    });
  }

  /** Runs calls one after the other, so that the queue is not opened and closed at the same time. */
  inTurn(act) {
    const turn = this.turn.then(act);
    this.turn = turn.catch(() => {});
    return turn;
  }

  /**
   * Keeps a position until it is stored: {lat, long, …}, or a browser's GeolocationPosition or GeolocationCoordinates.
   * `timestamp` is by this device's clock; it is corrected to the server's clock before the ping is first sent.
   * Resolves with the ping's timestamp once it is in the queue.
   */
  async ping(given) {
    const { coords = given, timestamp: at = given.timestamp } = given;
    const fix = "latitude" in coords ? { ...plain(coords), timestamp: at ?? undefined } : given;
    const { isFinite } = Number;
    if (!(isFinite(fix.lat) && isFinite(fix.long) && Math.abs(fix.lat) <= 90 && Math.abs(fix.long) <= 180)) {
      throw new RangeError(`lat is -90 to 90 and long -180 to 180 degrees, not ${fix.lat}, ${fix.long}`);
    }
    if (fix.timestamp != null && !isFinite(fix.timestamp)) throw new TypeError(`timestamp is epoch ms, not ${fix.timestamp}`);
    await this.load();
    const offset = this.correction();
    const own = fix.timestamp == null;
    let timestamp = Math.round((fix.timestamp ?? Date.now()) + (offset ?? 0));
    // Vendor and timestamp identify a ping, so two pings need different milliseconds.
    if (own) {
      if (timestamp <= this.latest && timestamp > this.latest - 1_000) timestamp = this.latest + 1;
      while (this.waiting.has(timestamp)) timestamp += 1;
      this.latest = timestamp;
    } else if (this.waiting.has(timestamp)) return timestamp;
    const ping = { lat: fix.lat, long: fix.long, timestamp };
    for (const name of ["heading", "speed", "accuracy"]) {
      if (typeof fix[name] === "number" && Number.isFinite(fix[name])) ping[name] = fix[name];
    }
    this.waiting.set(timestamp, { ping, local: offset === null });
    this.put.set(timestamp, ping);
    this.insert(timestamp);
    this.bound();
    this.pump();
    this.queued();
    await this.written();
    return timestamp;
  }

  /**
   * Opens or closes for business; repeated after a reconnect until the server has acknowledged it. A vendor that closes
   * with `hidden` leaves all maps immediately, until it opens.
   */
  setOpen(open, { hidden } = {}) {
    this.status = { message: { type: "status", open, ...(hidden && { hidden }) }, seq: null };
    this.sendStatus();
  }

  /** Resolves when the server has stored all pings; rejects with a VentaError if the connection ends before. */
  flushed() {
    return Promise.all([...this.waiting.keys()].map((timestamp) => this.whenStored(timestamp).catch(ignoreRejects))).then(() => {});
  }

  /** Resolves when the ping with this timestamp is stored; rejects if it is rejected or dropped, or the client ends. */
  whenStored(given) {
    const timestamp = this.waiting.has(given) ? given : this.corrected.get(given);
    if (!this.waiting.has(timestamp)) return Promise.resolve();
    if (this.state === "failed") return Promise.reject(new VentaError(this.link.detail.code, this.link.detail.reason));
    if (!this.promised.has(timestamp)) {
      const made = {};
      made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
      this.promised.set(timestamp, made);
    }
    return this.promised.get(timestamp).promise;
  }

  // called by the link

  opened() {}

  took(message) {
    if (message.type === "hello") this.hello(message);
    else if (message.type === "ack") this.acked(message.seq);
    else if (message.type === "reject") this.reject(message);
    else if (message.type === "error") {
      // The error may be about the status; sending it again is idempotent.
      if (this.status?.seq != null && message.retryAfterMs !== undefined) {
        this.link.after("status", message.retryAfterMs, () => this.sendStatus());
      }
      this.fail(message);
    }
  }

  probe() {
    // no message is normal here, as acks wait for PostgreSQL; an invalid ping is rejected immediately
    if (!this.greeted || (this.sent.size === 0 && this.status?.seq == null)) return false;
    this.link.send({
      type: "ping",
      seq: ++this.seq,
      lat: 0,
      long: 0,
      timestamp: Date.now() + (this.clockOffset ?? 0) + PROBE_AHEAD,
    });
    return true;
  }

  became(state, detail) {
    if (state !== "connected") this.greeted = false;
    if (state === "failed" || state === "disconnected") {
      const { code = 1000, reason = "disconnected by the app" } = detail;
      for (const timestamp of [...this.promised.keys()]) this.resolve(timestamp, new VentaError(code, reason));
    }
    super.became(state, detail);
  }

  // internal

  load() {
    this.loaded ??= this.queue.load().then((pings) => {
      for (const ping of pings) {
        if (this.waiting.has(ping.timestamp)) continue;
        this.waiting.set(ping.timestamp, { ping, local: false });
        this.insert(ping.timestamp);
      }
      this.bound();
      this.queued();
    });
    const { loaded } = this;
    loaded.catch(() => {
      if (this.loaded === loaded) this.loaded = null; // the next call tries again
    });
    return loaded;
  }

  /** The correction to add to this device's times, ms; null before it is known. */
  correction() {
    const offset = this.clockOffset;
    return offset === null || Math.abs(offset) > CLOCK_TOLERANCE ? offset : 0;
  }

  /**
   * How much further this clock went than performance.now() since hello, ms. Only a step back is certain: many devices
   * stop performance.now() during sleep, which looks like a step ahead.
   */
  clockStep() {
    const passed = performance.now() - this.measured.ran;
    const step = Math.round(Date.now() - this.measured.wall - passed);
    // the tolerance grows with time, as two clocks never run equally fast
    return Math.abs(step) > CLOCK_STEP + passed / 1_000 ? step : 0;
  }

  insert(timestamp) {
    const { unsent } = this;
    let at = unsent.length;
    while (at > 0 && unsent[at - 1] > timestamp) at -= 1;
    unsent.splice(at, 0, timestamp);
  }

  bound() {
    const over = this.waiting.size - this.maxQueue;
    if (over <= 0) return;
    const oldest = [...this.waiting.keys()].sort((a, b) => a - b).slice(0, over);
    const gone = oldest.map((timestamp) => this.waiting.get(timestamp).ping);
    for (const timestamp of oldest) this.forget(timestamp);
    const dropped = new Set(oldest);
    this.unsent = this.unsent.filter((timestamp) => !dropped.has(timestamp));
    this.dropped += over;
    for (const timestamp of oldest) this.resolve(timestamp, new VentaError("ERR_DROPPED", "the queue is full"));
    if (!this.emit("dropped", gone)) warn({ code: "ERR_DROPPED", message: `the queue is full: ${over} of the oldest pings were dropped` });
  }

  forget(timestamp) {
    this.waiting.delete(timestamp);
    if (!this.put.delete(timestamp) || this.writing !== null) this.remove.add(timestamp);
  }

  hello(message) {
    const first = this.measured === null;
    const wall = Date.now();
    this.measured = { offset: message.time - wall, wall, ran: performance.now() };
    if (first) this.latest += this.correction();
    this.maxBatch = message.maxBatch;
    this.vendorId = message.vendorId;
    // Only the ping with this timestamp is known to be stored; older ones may not be.
    if (message.durable !== null && this.waiting.has(message.durable)) {
      const { ping } = this.waiting.get(message.durable);
      this.forget(message.durable);
      this.stored += 1;
      this.resolve(message.durable);
      this.emit("stored", [ping]);
    }
    this.correct();
    this.sent.clear();
    this.seq = 0;
    this.newestSent = 0;
    this.unsent = [...this.waiting.keys()].sort((a, b) => a - b);
    this.greeted = true;
    if (this.status !== null) this.status.seq = null;
    this.link.established();
    this.emit("hello", message);
    this.sendStatus();
    this.pump();
    this.queued();
  }

  /** Corrects the timestamps that this run took by a wrong clock, before any of these pings is sent. */
  correct() {
    const by = this.correction();
    for (const [timestamp, entry] of [...this.waiting]) {
      if (!entry.local) continue;
      entry.local = false;
      if (by === 0) continue;
      this.forget(timestamp);
      let corrected = timestamp + by;
      while (this.waiting.has(corrected)) corrected += 1;
      entry.ping = { ...entry.ping, timestamp: corrected };
      this.waiting.set(corrected, entry);
      this.remove.delete(corrected);
      this.put.set(corrected, entry.ping);
      this.corrected.set(timestamp, corrected);
      const promised = this.promised.get(timestamp);
      this.promised.delete(timestamp);
      if (promised) this.promised.set(corrected, promised);
    }
    void this.written();
  }

  /** Sends the newest ping first, so that watchers see the current position, then the backlog, oldest first. */
  pump() {
    if (!this.greeted) return;
    while (this.unsent.length > 0 && this.link.buffered < MOST_BUFFERED) {
      const newest = this.unsent.at(-1);
      const fresh = newest > Date.now() + (this.correction() ?? 0) - LIVE_MAX_AGE;
      if (fresh && newest > this.newestSent) {
        this.newestSent = newest;
        this.unsent.pop();
        this.link.send({ type: "ping", ...this.numbered(newest) });
      } else {
        // the number of pings in flight is limited, so that a new ping does not wait behind hours of old ones
        if (this.sent.size > 2 * this.maxBatch) break;
        const pings = [];
        let bytes = 0;
        while (pings.length < Math.min(this.maxBatch, this.unsent.length) && bytes < MOST_BYTES) {
          const ping = this.numbered(this.unsent[pings.length]);
          pings.push(ping);
          bytes += JSON.stringify(ping).length + 1;
        }
        this.unsent.splice(0, pings.length);
        this.link.send({ type: "pings", pings });
      }
    }
    if (this.unsent.length > 0) this.link.after("pump", 250, () => this.pump());
  }

  numbered(timestamp) {
    this.sent.set(++this.seq, timestamp);
    return { seq: this.seq, ...this.waiting.get(timestamp).ping };
  }

  sendStatus() {
    if (this.status === null || !this.greeted) return;
    this.link.send(this.status.message);
    // messages are handled in order, so an ack of a later ping also confirms this one
    this.status.seq = this.seq + 1;
  }

  acked(seq) {
    const stored = [];
    for (const [number, timestamp] of this.sent) {
      if (number > seq) break;
      this.sent.delete(number);
      const entry = this.waiting.get(timestamp);
      if (entry === undefined) continue;
      this.forget(timestamp);
      this.resolve(timestamp);
      stored.push(entry.ping);
    }
    if (this.status?.seq != null && seq >= this.status.seq) this.status = null;
    this.stored += stored.length;
    if (stored.length > 0) this.emit("stored", stored);
    void this.written();
    this.pump();
    this.queued();
  }

  reject(message) {
    const timestamp = this.sent.get(message.seq);
    this.sent.delete(message.seq);
    const entry = this.waiting.get(timestamp);
    if (entry === undefined) return;
    this.forget(timestamp);
    this.rejected += 1;
    this.resolve(timestamp, new VentaError(message.code, message.message));
    if (!this.emit("rejected", entry.ping, message)) warn(message);
    void this.written();
    this.queued();
    // not sleep, but a clock set ahead: the next hello gives the difference
    if (message.code === "ERR_TIMESTAMP_IN_FUTURE" && this.clockStep() > 0) {
      this.link.lost(this.link.generation, 1006, "this device's clock was set");
    }
  }

  queued() {
    this.emit("queue", this.waiting.size);
  }

  /** Settles the promise for a ping: resolved, or rejected with an error. */
  resolve(timestamp, error) {
    const promised = this.promised.get(timestamp);
    if (promised === undefined) return;
    this.promised.delete(timestamp);
    if (error === undefined) promised.resolve();
    else promised.reject(error);
  }

  /** Writes changes, one write at a time; changes during a write are merged into the next one. */
  written() {
    this.writing ??= (async () => {
      await null;
      try {
        while (this.put.size > 0 || this.remove.size > 0) {
          const put = [...this.put.values()];
          const remove = [...this.remove];
          this.put.clear();
          this.remove.clear();
          try {
            await this.queue.write(put, remove);
          } catch (error) {
            for (const ping of put) if (this.waiting.has(ping.timestamp)) this.put.set(ping.timestamp, ping);
            for (const timestamp of remove) if (!this.waiting.has(timestamp)) this.remove.add(timestamp);
            throw error;
          }
        }
      } finally {
        this.writing = null;
      }
    })();
    return this.writing.catch((error) => {
      // pings are still sent when the disk is full, as they are in memory
      this.fail({ type: "error", code: "ERR_QUEUE", message: `the queue can't be written: ${error?.message ?? error}` });
    });
  }
}

/** Converts a browser's coordinates to a fix; unknown values are null or NaN there. */
function plain({ latitude, longitude, accuracy, heading, speed }) {
  const known = Object.entries({ accuracy, heading, speed }).filter(([, value]) => Number.isFinite(value) && value >= 0);
  return { lat: latitude, long: longitude, ...Object.fromEntries(known) };
}

/** For `flushed`: a rejected or dropped ping does not count; a connection that ended is an error. */
function ignoreRejects(error) {
  if (typeof error.code === "number") throw error;
}
