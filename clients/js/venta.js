/**
 * The client of the Venta location streamer, for browsers and Node (20 or newer), without dependencies.
 *
 * `CustomerClient` keeps views of areas true; `VendorClient` keeps each ping until it is stored. Both come back by
 * themselves, as the close codes of the protocol and the server's hints say. The types are in venta.d.ts.
 */

const SUBPROTOCOL = "streamer.v1";
const LIVE_MAX_AGE = 600_000;
/** A message of the client stays well under the 64 KiB that the server takes. */
const MOST_BYTES = 48 << 10;
/** More than this not yet gone out, and no more is handed to the socket: the link is slow, newest pings go first. */
const MOST_BUFFERED = 64 << 10;
/** A difference between the clocks that may as well be the way of the hello. */
const CLOCK_TOLERANCE = 2_000;
/** A timestamp that is refused whatever the server's tolerance: the refusal shows that the server hears us. */
const PROBE_AHEAD = 365 * 86_400_000;

/**
 * What a close code asks of a client: "yes" (come back), "later" (come back, not soon), "token" (with a new token),
 * "no" (never again: the cause would be the same).
 * @param {number} code
 * @returns {"yes" | "later" | "token" | "no"}
 */
export function comeBack(code) {
  if (code === 1009 || code === 4400 || code === 4403 || code === 4404) return "no";
  if (code === 4401) return "token";
  return code === 4429 ? "later" : "yes";
}

/**
 * How long to wait before a try, ms: anywhere up to a bound that doubles with each failure, so that clients which lost
 * the same server do not come back at the same moment.
 * @param {number} failures tries that failed in a row, from 1
 * @param {number} base
 * @param {number} most
 * @param {number} chance from 0 up to 1
 */
export function backoff(failures, base, most, chance) {
  return Math.round(chance * Math.min(most, base * 2 ** Math.min(failures - 1, 30)));
}

/**
 * When a JWT ends, epoch ms; null when it doesn't say. It is not checked: that is the server's to do.
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

/** A socket that comes back. What is said on it is its owner's; whether and when there is one is decided here. */
class Link {
  constructor(url, options, owner) {
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (this.WebSocket === undefined) {
      throw new TypeError(
        "there is no WebSocket here: use Node 22 or newer, start Node 20 with --experimental-websocket, " +
          "or pass one as options.WebSocket",
      );
    }
    this.url = url;
    this.owner = owner;
    this.getToken = options.getToken ?? null;
    this.base = options.minDelay ?? 1_000;
    this.most = options.maxDelay ?? 30_000;
    this.connectTimeout = options.connectTimeout ?? 15_000;
    this.silence = options.silence ?? 30_000;
    this.answerTimeout = options.answerTimeout ?? 15_000;
    this.random = options.random ?? Math.random;
    this.state = "stopped";
    /** When a message last came, epoch ms by this clock; null: never. */
    this.heard = null;
    this.failures = 0;
    this.socket = null;
    this.hint = null;
    this.floor = 0;
    this.refused = null;
    this.token = null;
    this.generation = 0;
    this.timers = {};
    this.wake = () => {
      if (this.state === "waiting" && globalThis.document?.visibilityState !== "hidden") this.kick();
    };
    this.away = () => {
      // The system knows that the network went; a socket would notice after a minute.
      if (this.socket !== null) this.lost(this.generation, 1006, "the device is offline");
    };
  }

  start() {
    if (this.state !== "stopped" && this.state !== "ended") return;
    globalThis.addEventListener?.("online", this.wake);
    globalThis.addEventListener?.("offline", this.away);
    globalThis.document?.addEventListener("visibilitychange", this.wake);
    this.failures = 0;
    this.refused = null;
    void this.connect();
  }

  stop() {
    this.quit("stopped");
  }

  /** Try now, whatever the wait. */
  kick() {
    if (this.state !== "waiting") return;
    this.clear("retry");
    void this.connect();
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  get open() {
    return this.state === "open";
  }

  get buffered() {
    return this.socket?.bufferedAmount ?? 0;
  }

  become(state, detail = {}) {
    this.state = state;
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

  async connect() {
    const generation = ++this.generation;
    this.become("connecting");
    let token = null;
    if (this.getToken !== null) {
      try {
        token = await this.getToken({ refresh: this.refused !== null });
      } catch (error) {
        if (generation === this.generation) this.retry(1006, `no token: ${error?.message ?? error}`);
        return;
      }
      if (generation !== this.generation) return;
    }
    if (this.refused !== null && token === this.refused) {
      this.quit("ended", { code: 4401, reason: this.reason || "the token was refused, and there is no other" });
      return;
    }
    this.token = token;
    this.hint = null;
    this.floor = 0;
    this.reason = "";
    let socket;
    try {
      socket = new this.WebSocket(this.url, token === null ? [SUBPROTOCOL] : [SUBPROTOCOL, `bearer.${token}`]);
    } catch (error) {
      // A token with characters that no header may hold, or a wrong URL: the next try would be the same.
      this.quit("ended", { code: 4400, reason: String(error?.message ?? error) });
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
    // Not every WebSocket tells of its close after an error; one that does has said it by then.
    socket.onerror = () => setTimeout(() => this.lost(generation, 1006, "the connection failed"), 50);
  }

  /** The owner has what it needs of the server: the connection stands. */
  stands() {
    this.clear("connect");
    this.refused = null;
    this.after("healthy", 5_000, () => (this.failures = 0));
    this.watchToken();
    this.listen(this.generation);
    this.become("open");
  }

  took(generation, data) {
    this.heard = Date.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return this.lost(generation, 1006, "what came is not JSON");
    }
    if (message.type === "bye") this.hint = message.reconnectAfterMs;
    else {
      if (message.type === "error") {
        this.reason = message.message;
        this.floor = message.retryAfterMs ?? 0;
      }
      this.owner.took(message);
    }
  }

  /** A connection may be dead without a word: after a silence ask for an answer. */
  listen(generation) {
    const look = () => {
      if (generation !== this.generation) return;
      const silent = Date.now() - this.heard;
      if (silent < this.silence) this.after("listen", this.silence - silent, look);
      else if (this.owner.probe()) {
        const asked = Date.now();
        this.after("listen", this.answerTimeout, () => {
          if (this.heard < asked) this.lost(generation, 1006, `nothing heard for ${Date.now() - this.heard} ms`);
          else look();
        });
      } else this.after("listen", this.silence, look);
    };
    this.after("listen", this.silence, look);
  }

  /** A token that ends soon is replaced on the open connection. */
  watchToken() {
    const ends = this.token === null ? null : expiry(this.token);
    if (ends === null || this.getToken === null) return;
    const left = ends - Date.now();
    const generation = this.generation;
    const renew = async () => {
      try {
        const token = await this.getToken({ refresh: true });
        if (generation !== this.generation || token === null || token === this.token) return;
        this.token = token;
        this.send({ type: "auth", token });
        this.watchToken();
      } catch (error) {
        this.owner.failed(error);
        if (generation === this.generation) this.after("token", 5_000, renew);
      }
    };
    this.after("token", Math.min(Math.max(left - 60_000, left * 0.7, 1_000), 2 ** 31 - 1), renew);
  }

  lost(generation, code, reason) {
    if (generation !== this.generation || this.state === "waiting") return;
    this.letGo();
    reason = reason || this.reason;
    const wanted = comeBack(code);
    if (wanted === "no" || (wanted === "token" && this.getToken === null)) {
      this.quit("ended", { code, reason });
      return;
    }
    if (wanted === "token") {
      this.refused = this.token;
      this.reason = reason;
    }
    this.retry(code, reason, wanted);
  }

  retry(code, reason, wanted = "yes") {
    this.generation += 1;
    this.failures += 1;
    let wait = backoff(this.failures, this.base, this.most, this.random());
    if (this.hint !== null) wait = this.hint;
    else if (wanted === "later") wait += Math.max(this.floor, 5 * this.base);
    else wait += this.floor;
    this.after("retry", wait, () => void this.connect());
    this.become("waiting", { code, reason, retryInMs: wait });
  }

  letGo() {
    for (const name of Object.keys(this.timers)) this.clear(name);
    const socket = this.socket;
    this.socket = null;
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState < 2) {
      try {
        socket.close(1000);
      } catch {
        // It is gone all the same.
      }
    }
  }

  quit(state, detail = {}) {
    this.generation += 1;
    this.letGo();
    globalThis.removeEventListener?.("online", this.wake);
    globalThis.removeEventListener?.("offline", this.away);
    globalThis.document?.removeEventListener("visibilitychange", this.wake);
    if (this.state !== state) this.become(state, detail);
  }
}

function socketUrl(url, path, query = {}) {
  const made = new URL(url);
  made.protocol = made.protocol.replace("http", "ws");
  made.pathname = made.pathname.replace(/\/$/, "") + path;
  for (const [name, value] of Object.entries(query)) if (value != null) made.searchParams.set(name, value);
  return made.href;
}

function call(act, ...values) {
  if (act === undefined) return;
  try {
    act(...values);
  } catch (error) {
    // The app's own mistake must not cost it the connection.
    (globalThis.reportError ?? console.error)(error);
  }
}

// customers

const PROBE_ID = "~probe";

/** One watched area or list; `vendors` is what is inside, by vendorId, as of the last word from the server. */
export class Watch {
  constructor(client, id, wanted, handlers) {
    this.client = client;
    this.id = id;
    this.wanted = wanted;
    this.handlers = handlers;
    this.vendors = new Map();
    /** Of a watch with `as: "counts"`: the groups, by their names. */
    this.groups = new Map();
    /** The view is exact: a snapshot came on this connection. */
    this.fresh = false;
    this.answered = false;
    this.closed = false;
  }

  /** Watch something else under the same name; what the view holds stays until the snapshot comes. */
  move(wanted) {
    this.wanted = { ...wanted };
    this.fresh = false;
    this.client.ask(this);
  }

  close() {
    this.client.drop(this);
  }

  snapshot(cards) {
    const gone = new Set(this.vendors.keys());
    for (const card of cards) {
      gone.delete(card.vendorId);
      this.upsert(card);
    }
    for (const vendorId of gone) this.leave(vendorId);
    this.fresh = this.answered = true;
    call(this.handlers.onSnapshot, this.vendors);
  }

  count(groups, all) {
    if (!all && !this.answered) return;
    if (all) {
      this.groups.clear();
      this.fresh = this.answered = true;
    }
    for (const group of groups) {
      if (group.count === 0) this.groups.delete(group.group);
      else this.groups.set(group.group, group);
    }
    call(this.handlers.onCounts, this.groups);
  }

  update(message) {
    if (!this.answered) return; // of a watch that had this name before
    for (const card of message.entered ?? []) this.upsert(card);
    for (const fix of message.moved ?? []) this.shift(fix);
    for (const vendorId of message.left ?? []) this.leave(vendorId);
  }

  upsert(card) {
    const before = this.vendors.get(card.vendorId);
    this.vendors.set(card.vendorId, card);
    if (before === undefined) return call(this.handlers.onEntered, card);
    if (["name", "open", "primaryImage", "online"].some((name) => before[name] !== card[name])) {
      call(this.handlers.onChanged, card, before);
    }
    if (["timestamp", "lat", "long", "heading", "speed"].some((name) => before[name] !== card[name])) {
      call(this.handlers.onMoved, card, before);
    }
  }

  shift(fix) {
    const before = this.vendors.get(fix.vendorId);
    if (before === undefined) return;
    const { heading: _, speed: __, ...kept } = before;
    const card = { ...kept, ...fix };
    this.vendors.set(fix.vendorId, card);
    call(this.handlers.onMoved, card, before);
  }

  leave(vendorId) {
    const card = this.vendors.get(vendorId);
    if (this.vendors.delete(vendorId)) call(this.handlers.onLeft, card);
  }
}

/** A customer's connection: watches whose views are kept true, over any number of connections. */
export class CustomerClient {
  constructor(url, options = {}) {
    this.options = options;
    this.watches = new Map();
    this.numbers = 0;
    this.probing = false;
    this.link = new Link(socketUrl(url, "/v1/watch"), options, this);
  }

  get state() {
    return this.link.state;
  }

  /** When the server was last heard, epoch ms by this clock; null: never. */
  get heard() {
    return this.link.heard;
  }

  start() {
    this.link.start();
    return this;
  }

  stop() {
    this.link.stop();
  }

  /** Try to connect now rather than after the wait. */
  retry() {
    this.link.kick();
  }

  watch(wanted, handlers = {}, id = `w${++this.numbers}`) {
    if (this.watches.has(id)) throw new RangeError(`there is a watch ${id} already: move it, or close it first`);
    const watch = new Watch(this, id, { ...wanted }, handlers);
    this.watches.set(id, watch);
    this.ask(watch);
    return watch;
  }

  // of the link and the watches

  opened() {
    // One that needs a token and got none hears nothing until it is closed: the first answer tells.
    this.link.stands();
    for (const watch of this.watches.values()) this.ask(watch);
  }

  ask(watch) {
    if (this.link.open && !watch.closed) this.link.send({ ...watch.wanted, type: "watch", id: watch.id });
  }

  drop(watch) {
    if (watch.closed) return;
    watch.closed = true;
    watch.fresh = false;
    this.watches.delete(watch.id);
    if (this.link.open) this.link.send({ type: "unwatch", id: watch.id });
  }

  took(message) {
    if (message.id === PROBE_ID) {
      if (message.type === "snapshot") this.link.send({ type: "unwatch", id: PROBE_ID });
      return;
    }
    const watch = this.watches.get(message.id);
    if (message.groups !== undefined) watch?.count(message.groups, message.type === "snapshot");
    else if (message.type === "snapshot") watch?.snapshot(message.vendors);
    else if (message.type === "update") watch?.update(message);
    else if (message.type === "error") {
      if (watch !== undefined && message.retryAfterMs !== undefined) {
        const generation = this.link.generation;
        setTimeout(() => generation === this.link.generation && this.ask(watch), message.retryAfterMs);
      }
      if (watch !== undefined) call(watch.handlers.onError, message);
      call(this.options.onError, message);
      return;
    }
    if (watch !== undefined && !watch.closed && watch.fresh) call(watch.handlers.onView, watch.vendors);
  }

  probe() {
    this.link.send({ type: "watch", id: PROBE_ID, vendors: [PROBE_ID] });
    return true;
  }

  failed(error) {
    call(this.options.onError, { type: "error", code: "ERR_UNAUTHORIZED", message: String(error?.message ?? error) });
  }

  became(state, detail) {
    if (state !== "open") for (const watch of this.watches.values()) watch.fresh = false;
    call(this.options.onState, state, detail);
  }
}

// vendors

/** A queue that is gone with the page or process. */
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

/** A queue in the browser's IndexedDB; give each vendor a name of its own. */
export class IndexedDbQueue {
  constructor(name = "streamer-pings") {
    this.name = name;
    this.database = null;
  }

  async load() {
    this.database ??= await new Promise((resolve, reject) => {
      const opening = indexedDB.open(this.name, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("pings", { keyPath: "timestamp" });
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
      opening.onblocked = () => reject(new Error(`${this.name} is open in another version of this page`));
    });
    const store = this.database.transaction("pings").objectStore("pings");
    return await new Promise((resolve, reject) => {
      const reading = store.getAll();
      reading.onsuccess = () => resolve(reading.result);
      reading.onerror = () => reject(reading.error);
    });
  }

  async write(put, remove) {
    const transaction = this.database.transaction("pings", "readwrite", { durability: "strict" });
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

/** Another vendor on the same device must not report this one's pings as its own. */
function queueName({ vendorId }) {
  return vendorId == null ? "streamer-pings" : `streamer-pings-${vendorId}`;
}

/** A vendor's connection: a ping given to it is kept, over restarts where the queue lasts, until the server has it. */
export class VendorClient {
  constructor(url, options = {}) {
    this.options = options;
    this.queue = options.queue ?? (globalThis.indexedDB ? new IndexedDbQueue(queueName(options)) : new MemoryQueue());
    this.maxQueue = options.maxQueue ?? 100_000;
    this.maxBatch = 500;
    /** The server's clock less this one, ms; null before the first hello. */
    this.clockOffset = null;
    this.vendorId = options.vendorId ?? null;
    /** All that the server is not known to have, by timestamp. */
    this.waiting = new Map();
    this.unsent = [];
    this.sent = new Map();
    this.seq = 0;
    this.status = null;
    /** The newest time given by this clock rather than by the caller. */
    this.latest = 0;
    this.newestSent = 0;
    this.stored = 0;
    this.rejected = 0;
    this.dropped = 0;
    this.greeted = false;
    this.loaded = null;
    this.put = new Map();
    this.remove = new Set();
    this.writing = null;
    this.empty = [];
    this.link = new Link(socketUrl(url, "/v1/vendor", { vendorId: options.vendorId }), options, this);
  }

  get state() {
    return this.link.state;
  }

  /** Pings that the server is not known to have. */
  get size() {
    return this.waiting.size;
  }

  /** Read what an earlier run left, and connect. */
  async start() {
    await this.load();
    this.link.start();
    return this;
  }

  /** End the connection; what is not acked stays in the queue. Resolves when that is written. */
  async stop() {
    this.link.stop();
    await this.written();
    await this.queue.close();
    this.loaded = null;
  }

  retry() {
    this.link.kick();
  }

  /**
   * Keep a position until it is stored. `timestamp` is by this device's clock; the difference to the server's is taken
   * off before the ping is first sent. Resolves with the ping's timestamp when the queue has it.
   */
  async ping(fix) {
    if (!(Math.abs(fix.lat) <= 90 && Math.abs(fix.long) <= 180)) {
      throw new RangeError(`lat is -90 to 90 and long -180 to 180 degrees, not ${fix.lat}, ${fix.long}`);
    }
    await this.load();
    const offset = this.correction();
    const own = fix.timestamp === undefined;
    let timestamp = Math.round((fix.timestamp ?? Date.now()) + (offset ?? 0));
    // A ping is its vendor and timestamp: two in one millisecond would be one.
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
    this.told();
    await this.written();
    return timestamp;
  }

  /** Open or close for business; said again after a reconnect unless the server is known to have heard it. */
  setOpen(open) {
    this.status = { open, seq: null };
    this.sayStatus();
  }

  /** Resolves when the server has all that was given. */
  flushed() {
    return this.waiting.size === 0 ? Promise.resolve() : new Promise((resolve) => this.empty.push(resolve));
  }

  // of the link

  opened() {}

  took(message) {
    if (message.type === "hello") this.hello(message);
    else if (message.type === "ack") this.acked(message.seq);
    else if (message.type === "reject") this.reject(message);
    else if (message.type === "error") {
      // It may be the status that could not be stored: said twice, it is the same.
      if (this.status?.seq != null && message.retryAfterMs !== undefined) {
        this.link.after("status", message.retryAfterMs, () => this.sayStatus());
      }
      call(this.options.onError, message);
    }
  }

  probe() {
    // Silence is no sign of death here: acks wait with PostgreSQL. A ping that can't be taken is answered at once.
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

  failed(error) {
    call(this.options.onError, { type: "error", code: "ERR_UNAUTHORIZED", message: String(error?.message ?? error) });
  }

  became(state, detail) {
    if (state !== "open") this.greeted = false;
    call(this.options.onState, state, detail);
  }

  // inside

  load() {
    this.loaded ??= this.queue.load().then((pings) => {
      for (const ping of pings) {
        if (this.waiting.has(ping.timestamp)) continue;
        this.waiting.set(ping.timestamp, { ping, local: false });
        this.insert(ping.timestamp);
      }
      this.bound();
      this.told();
    });
    return this.loaded;
  }

  /** What to add to this clock's times; null before it is known. */
  correction() {
    if (this.clockOffset === null) return null;
    return Math.abs(this.clockOffset) > CLOCK_TOLERANCE ? this.clockOffset : 0;
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
    call(this.options.onDropped, gone);
  }

  forget(timestamp) {
    this.waiting.delete(timestamp);
    if (!this.put.delete(timestamp) || this.writing !== null) this.remove.add(timestamp);
  }

  hello(message) {
    this.clockOffset = message.time - Date.now();
    this.maxBatch = message.maxBatch;
    this.vendorId = message.vendorId;
    // Only the ping that `durable` names is known to be stored: an older one may still wait behind it.
    if (message.durable !== null && this.waiting.has(message.durable)) {
      const { ping } = this.waiting.get(message.durable);
      this.forget(message.durable);
      this.stored += 1;
      call(this.options.onStored, [ping]);
    }
    this.correct();
    this.sent.clear();
    this.seq = 0;
    this.newestSent = 0;
    this.unsent = [...this.waiting.keys()].sort((a, b) => a - b);
    this.greeted = true;
    if (this.status !== null) this.status.seq = null;
    this.link.stands();
    call(this.options.onHello, message);
    this.sayStatus();
    this.pump();
    this.told();
  }

  /** The times of this run that were taken by a wrong clock, before any of them goes out. */
  correct() {
    const by = this.correction();
    for (const [timestamp, entry] of [...this.waiting]) {
      if (!entry.local) continue;
      entry.local = false;
      if (by === 0) continue;
      this.forget(timestamp);
      let mended = timestamp + by;
      while (this.waiting.has(mended)) mended += 1;
      entry.ping = { ...entry.ping, timestamp: mended };
      this.waiting.set(mended, entry);
      this.remove.delete(mended);
      this.put.set(mended, entry.ping);
    }
    this.latest += by;
    void this.written();
  }

  /** Send: the newest first, for those who watch, then what was collected before, oldest first. */
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
        // What is on its way is bounded, so that a fresh ping does not stand behind hours of old ones.
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

  sayStatus() {
    if (this.status === null || !this.greeted) return;
    this.link.send({ type: "status", open: this.status.open });
    // Messages are taken in order: an ack of a later ping says that this one was heard.
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
      stored.push(entry.ping);
    }
    if (this.status?.seq != null && seq >= this.status.seq) this.status = null;
    this.stored += stored.length;
    if (stored.length > 0) call(this.options.onStored, stored);
    void this.written();
    this.pump();
    this.told();
  }

  reject(message) {
    const timestamp = this.sent.get(message.seq);
    this.sent.delete(message.seq);
    const entry = this.waiting.get(timestamp);
    if (entry === undefined) return;
    this.forget(timestamp);
    this.rejected += 1;
    call(this.options.onRejected, entry.ping, message);
    void this.written();
    this.told();
  }

  told() {
    if (this.waiting.size === 0) for (const resolve of this.empty.splice(0)) resolve();
    call(this.options.onQueue, this.waiting.size);
  }

  /** Write what changed, one write after the other; all that comes meanwhile goes together into the next. */
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
      // A full disk is no reason not to send: the pings are still in memory.
      call(this.options.onError, {
        type: "error",
        code: "ERR_INTERNAL",
        message: `the queue can't be written: ${error?.message ?? error}`,
      });
    });
  }
}
