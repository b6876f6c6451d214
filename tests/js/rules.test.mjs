import assert from "node:assert/strict";
import { mkdtemp, readFile, writeFile, appendFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, test as tested } from "node:test";
import { Alerts } from "../../clients/js/alerts.js";
import { FileQueue } from "../../clients/js/file-queue.js";
import { StorageQueue } from "../../clients/js/storage-queue.js";
import * as venta from "../../clients/js/venta.js";
import { MemoryQueue, VentaError, Watch, expiry, reconnectRule, reconnectWait, renewIn, signIn } from "../../clients/js/venta.js";

/** The links of a test's clients. After a failed assertion they would reconnect forever, and the process never end. */
const links = new Set();

class CustomerClient extends venta.CustomerClient {
  constructor(...given) {
    super(...given);
    links.add(this.link);
  }
}

class VendorClient extends venta.VendorClient {
  constructor(...given) {
    super(...given);
    links.add(this.link);
  }
}

afterEach(() => {
  for (const link of links) link.disconnect();
  links.clear();
});

/** A test that waits for what never happens fails instead of waiting as long as a client's timers run. */
const test = (name, ...given) => tested(name, { timeout: 20_000, ...(given.length > 1 ? given[0] : {}) }, given.at(-1));

/** The tables of clients/conformance, which the Python client's tests read too. */
const table = async (name) => JSON.parse(await readFile(new URL(`../../clients/conformance/${name}.json`, import.meta.url), "utf8"));

test("close codes and waits are those of the table", async () => {
  const { rules, waits } = await table("reconnect");
  for (const { code, reconnect } of rules) assert.equal(reconnectRule(code), reconnect, code);
  for (const { code, failures, chance, wait, ...options } of waits) assert.equal(reconnectWait(code, failures, chance, options), wait);
});

test("a clock is corrected as the table says", async () => {
  const now = Date.now;
  for (const { clock, time, add } of (await table("clock")).corrections) {
    const client = new VendorClient("http://a", { WebSocket: Wire, queue: new MemoryQueue(), onState: () => {} });
    const at = await client.ping({ lat: 1, long: 2, timestamp: clock });
    client.link.send = () => {};
    Date.now = () => clock;
    try {
      client.took({ type: "hello", vendorId: "v", time, durable: null, maxBatch: 500 });
    } finally {
      Date.now = now;
    }
    assert.deepEqual([...client.waiting.keys()], [at + add]);
    await client.disconnect();
  }
});

test("a token's end is read from it, and whatever is no JWT has none", async () => {
  for (const { claims, now, expires, renewIn: wait } of (await table("tokens")).tokens) {
    const token = ["e30", Buffer.from(claims).toString("base64url"), "x"].join(".");
    assert.equal(expiry(token), expires, claims);
    assert.equal(renewIn(token, now), wait, claims);
  }
  for (const other of ["", "a", "a.b", "a.%.c"]) assert.equal(expiry(other), null);
});

test("a queue's file survives a torn last line, and is rewritten before it grows too large", async () => {
  const path = join(await mkdtemp(join(tmpdir(), "queue-")), "pings");
  const queue = new FileQueue(path);
  assert.deepEqual(await queue.load(), []);
  await queue.write([{ timestamp: 1, lat: 1, long: 1 }, { timestamp: 2, lat: 2, long: 2 }], []);
  await queue.write([{ timestamp: 3, lat: 3, long: 3 }], [1]);
  await appendFile(path, '{"put":[{"timest');
  const again = new FileQueue(path);
  assert.deepEqual((await again.load()).map((p) => p.timestamp), [2, 3]);
  await again.write([{ timestamp: 4, lat: 4, long: 4 }], []);
  await again.close();
  const third = new FileQueue(path);
  assert.deepEqual((await third.load()).map((p) => p.timestamp), [2, 3, 4]);
  for (let n = 0; n < 40; n += 1) {
    const pings = Array.from({ length: 500 }, (_, i) => ({ timestamp: 1000 * n + i + 10, lat: 0, long: 0 }));
    await third.write(pings, []);
    await third.write([], pings.map((p) => p.timestamp));
  }
  await third.close();
  assert.ok((await readFile(path, "utf8")).length < 1_500_000);
});

test("a snapshot after a gap tells only what is different", () => {
  const told = [];
  const tell = (name) => (card) => told.push([name, card.vendorId]);
  const watch = new Watch(null, "w", {}, { onEntered: tell("entered"), onMoved: tell("moved"), onChanged: tell("changed"), onLeft: tell("left") });
  const card = (vendorId, more = {}) => ({ vendorId, name: vendorId, open: true, primaryImage: null, online: true, lat: 1, long: 1, timestamp: 1, ...more });
  watch.snapshot([card("a"), card("b"), card("c"), card("d", { heading: 3 })]);
  told.length = 0;
  watch.snapshot([card("a"), card("b", { lat: 2, timestamp: 2 }), card("d", { open: false }), card("e")]);
  assert.deepEqual(told, [["moved", "b"], ["changed", "d"], ["moved", "d"], ["entered", "e"], ["left", "c"]]);
  watch.update({ moved: [{ vendorId: "e", lat: 5, long: 5, timestamp: 9, speed: 1 }], left: ["a"] });
  assert.equal(watch.vendors.get("e").name, "e");
  assert.equal(watch.vendors.get("e").lat, 5);
  watch.update({ moved: [{ vendorId: "e", lat: 6, long: 5, timestamp: 10 }] });
  assert.ok(!("speed" in watch.vendors.get("e")));
});

test("a status that the database could not take is said again when the server asked for it", async () => {
  const sent = [];
  class Wire {
    constructor() {
      Wire.last = this;
      this.readyState = 1;
      this.bufferedAmount = 0;
      setTimeout(() => this.onopen());
    }
    send(text) {
      sent.push(JSON.parse(text));
    }
    close() {}
    says(message) {
      this.onmessage({ data: JSON.stringify(message) });
    }
  }
  const client = await new VendorClient("http://127.0.0.1:9", { WebSocket: Wire }).connect();
  client.setOpen(false);
  await new Promise((resolve) => setTimeout(resolve, 5));
  Wire.last.says({ type: "hello", vendorId: "v", time: Date.now(), durable: null, maxBatch: 500 });
  assert.deepEqual(sent, [{ type: "status", open: false }]);
  Wire.last.says({ type: "error", code: "ERR_OVERLOADED", message: "say it again", retryAfterMs: 20 });
  Wire.last.says({ type: "error", code: "ERR_OVERLOADED", message: "say it again", retryAfterMs: 20 });
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.deepEqual(sent, [{ type: "status", open: false }, { type: "status", open: false }]);
  await client.ping({ lat: 1, long: 1 });
  Wire.last.says({ type: "ack", seq: 1 });
  Wire.last.says({ type: "error", code: "ERR_INVALID_MESSAGE", message: "of something else", retryAfterMs: 1 });
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(sent.length, 3);
  await client.disconnect();
});

test("the types name what the modules export, and the classes' members are there", async () => {
  const folder = new URL("../../clients/js/", import.meta.url);
  for (const name of ["venta", "alerts", "file-queue", "storage-queue"]) {
    const module = await import(new URL(`${name}.js`, folder));
    const types = await readFile(new URL(`${name}.d.ts`, folder), "utf8");
    const declared = [...types.matchAll(/export declare (?:class|function) (\w+)/g)].map(([, found]) => found);
    assert.deepEqual(declared.sort(), Object.keys(module).sort(), name);
    for (const [, type, body] of types.matchAll(/export declare class (\w+)[^{]*\{(.*?)\n\}/gs)) {
      for (const [, member] of body.matchAll(/^  (\w+)\(/gm)) {
        if (member !== "constructor") assert.equal(typeof module[type].prototype[member], "function", `${type}.${member}`);
      }
    }
  }
});

/** A store like AsyncStorage, whose process can be ended before any write. */
class Storage {
  constructor(values = new Map(), writes = Infinity) {
    this.values = values;
    this.writes = writes;
  }
  spend() {
    if (this.writes-- <= 0) throw new Error("the process was ended");
  }
  async getItem(key) {
    return this.values.get(key) ?? null;
  }
  async setItem(key, value) {
    this.spend();
    this.values.set(key, value);
  }
  async removeItem(key) {
    this.spend();
    this.values.delete(key);
  }
}

test("a queue in AsyncStorage loses nothing that was written, wherever the process ends", async () => {
  const ping = (timestamp) => ({ timestamp, lat: 1, long: 1 });
  for (let writes = 0; writes < 420; writes += 1) {
    const values = new Map();
    const queue = new StorageQueue(new Storage(values, writes));
    await queue.load();
    const written = new Set();
    try {
      for (let n = 1; n <= 130; n += 1) {
        await queue.write([ping(n)], n % 2 ? [] : [n - 1]);
        written.add(n);
        if (n % 2 === 0) written.delete(n - 1);
      }
    } catch (error) {
      assert.equal(error.message, "the process was ended");
    }
    const held = new Set((await new StorageQueue(new Storage(values)).load()).map(({ timestamp }) => timestamp));
    for (const n of written) assert.ok(held.has(n) || held.has(n + 1), `${n} after ${writes} writes`);
    assert.ok(held.size <= written.size + 1);
    if (writes > 400) assert.ok(values.size < 110, "old records are removed");
  }
});

test("a long backlog in AsyncStorage is kept in records that Android can read", async () => {
  class Android extends Storage {
    async getItem(key) {
      const value = await super.getItem(key);
      if (value?.length > 2 << 20) throw new Error("Row too big to fit into CursorWindow");
      return value;
    }
  }
  const values = new Map();
  const queue = new StorageQueue(new Android(values));
  await queue.load();
  const ping = (_, n) => ({ timestamp: 1_732_467_600_000 + n, lat: 52.229712345678901, long: 21.012234567890123, heading: 90, speed: 4, accuracy: 8 });
  const pings = Array.from({ length: 40_000 }, ping);
  await queue.write(pings.slice(0, 25_000), []);
  for (let n = 25_000; n < 40_000; n += 100) await queue.write(pings.slice(n, n + 100), [pings[n - 25_000].timestamp]);
  const held = await new StorageQueue(new Android(values)).load();
  assert.equal(held.length, 40_000 - 150);
  assert.ok(values.size < 150, "old records are removed");
});

test("a record in AsyncStorage that can't be read is told once and dropped, and costs no other", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  const values = new Map();
  const queue = new StorageQueue(new Storage(values));
  await queue.load();
  for (const timestamp of [1, 2, 3, 4]) await queue.write([{ timestamp, lat: 1, long: 1 }], []);
  values.set("venta-pings.1", '{"put":[{"ti');
  values.set("venta-pings.2", "null");
  for (let times = 0; times < 2; times += 1) {
    assert.deepEqual((await new StorageQueue(new Storage(values)).load()).map(({ timestamp }) => timestamp), [1, 4]);
    assert.equal(warn.mock.callCount(), 1);
  }
});

test("a head in AsyncStorage that can't be read is told once and written anew, and costs no ping", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  for (const head of ['{"fir', "null", "{}", '{"first":-1}', '{"first":"0"}']) {
    for (const written of [3, 150, 500]) {
      const values = new Map();
      const queue = new StorageQueue(new Storage(values));
      await queue.load();
      for (let n = 1; n <= written; n += 1) await queue.write([{ timestamp: n, lat: 1, long: 1 }], [n - 3]);
      values.set("venta-pings", head);
      warn.mock.resetCalls();
      for (let times = 0; times < 2; times += 1) {
        const held = await new StorageQueue(new Storage(values)).load();
        assert.deepEqual(held.map(({ timestamp }) => timestamp), [written - 2, written - 1, written], head);
        assert.equal(warn.mock.callCount(), 1);
      }
    }
  }
});

test("a queue in AsyncStorage whose head and copy can't be read begins anew, and keeps what is written from then on", async (t) => {
  t.mock.method(console, "warn", () => {});
  const values = new Map();
  const queue = new StorageQueue(new Storage(values));
  await queue.load();
  for (let n = 1; n <= 150; n += 1) await queue.write([{ timestamp: n, lat: 1, long: 1 }], [n - 1]);
  for (const [key, value] of values) if (value.includes("first")) values.set(key, "{");
  const again = new StorageQueue(new Storage(values));
  await again.load();
  await again.write([{ timestamp: 151, lat: 1, long: 1 }], []);
  assert.deepEqual((await new StorageQueue(new Storage(values)).load()).map(({ timestamp }) => timestamp), [151]);
});

test("URLs are built without URL, whose parts can't be set in React Native", () => {
  const own = globalThis.URL;
  globalThis.URL = class {
    constructor() {
      throw new Error("not implemented");
    }
  };
  try {
    const url = (from, options) => new VendorClient(from, { WebSocket: class {}, queue: {}, ...options }).link.url;
    assert.equal(url("https://a.example"), "wss://a.example/v1/vendor");
    assert.equal(url("http://a.example:81/base/", { vendorId: "a b&c" }), "ws://a.example:81/base/v1/vendor?vendorId=a%20b%26c");
    assert.equal(url("HTTPS://a.example/?x=1#y", { vendorId: "v" }), "wss://a.example/v1/vendor?x=1&vendorId=v");
    assert.throws(() => url("a.example"), /must begin with https/);
  } finally {
    globalThis.URL = own;
  }
});

class Wire {
  constructor() {
    Wire.last = this;
    this.sent = [];
    this.readyState = 1;
    this.bufferedAmount = 0;
    setTimeout(() => this.onopen?.());
  }
  send(text) {
    this.sent.push(JSON.parse(text));
  }
  close() {}
  says(message) {
    this.onmessage({ data: JSON.stringify(message) });
  }
  ends(code, reason = "") {
    this.onclose({ code, reason });
  }
}

function console_(run) {
  const said = [];
  const own = console.warn;
  console.warn = (text) => said.push(text);
  return Promise.resolve(run(said)).finally(() => (console.warn = own));
}

test("what no handler hears is said once on the console, with what to do", () =>
  console_(async (said) => {
    const client = new CustomerClient("http://a", { WebSocket: Wire }).connect();
    await client.ready();
    client.watch({ area: {} }, {}, "w");
    for (let n = 0; n < 2; n += 1) Wire.last.says({ type: "error", id: "w", code: "ERR_AREA_TOO_LARGE", message: "it is too large" });
    assert.equal(said.length, 1);
    assert.match(said[0], /too large \(ERR_AREA_TOO_LARGE\): watch a smaller area/);
    client.on("error", () => {});
    Wire.last.says({ type: "error", id: "w", code: "ERR_INVALID_AREA", message: "no" });
    assert.equal(said.length, 1, "a handler heard it");
    Wire.last.ends(4403, "not yours");
    assert.match(said[1], /4403/);
    new VendorClient("http://a", { WebSocket: Wire });
    assert.match(said[2], /memory only/);
  }));

test("promises settle: connected, ended, stored, rejected, refused", async () => {
  const client = new VendorClient("http://a", { WebSocket: Wire, queue: new (class {
    load = async () => [];
    write = async () => {};
    close = async () => {};
  })(), onError: () => {}, onRejected: () => {}, onState: () => {} });
  const ready = client.ready();
  await client.connect();
  await new Promise((resolve) => setTimeout(resolve, 5));
  Wire.last.says({ type: "hello", vendorId: "v", time: Date.now(), durable: null, maxBatch: 500 });
  await ready;
  const times = [];
  for (let n = 0; n < 3; n += 1) times.push(await client.ping({ coords: { latitude: 1, longitude: 2, accuracy: 3, heading: null, speed: NaN }, timestamp: 1_000 + n }));
  assert.deepEqual(Wire.last.sent[0].pings?.[0] ?? Wire.last.sent[0], { ...(Wire.last.sent[0].pings ? {} : { type: "ping" }), seq: 1, lat: 1, long: 2, timestamp: 1_000, accuracy: 3 });
  const [first, second, third] = times.map((time) => client.whenStored(time));
  const flushed = client.flushed();
  Wire.last.says({ type: "ack", seq: 1 });
  await first;
  const rejected = assert.rejects(second, (error) => error instanceof VentaError && error.code === "ERR_TIMESTAMP_IN_FUTURE");
  Wire.last.says({ type: "reject", seq: 2, code: "ERR_TIMESTAMP_IN_FUTURE", message: "ahead" });
  await rejected;
  const ended = [assert.rejects(third, { code: 4403 }), assert.rejects(flushed, { code: 4403 })];
  Wire.last.ends(4403, "not yours");
  await Promise.all(ended);
  await assert.rejects(client.ready(), { code: 4403 });
  await assert.rejects(client.whenStored(times[2]), { code: 4403 });
});

test("a watch is ready with its view, and rejects what the server refuses; groups are upserts", async () => {
  const client = new CustomerClient("http://a", { WebSocket: Wire, onError: () => {}, onState: () => {} }).connect();
  await client.ready();
  const abort = new AbortController();
  const counts = client.watch({ area: {}, as: "counts" }, { signal: abort.signal }, "c");
  const group = (name, count) => ({ group: name, lat: 0, long: 0, count, open: 0, online: 0 });
  Wire.last.says({ type: "snapshot", id: "c", groups: [group("a", 1), group("b", 2)] });
  assert.equal((await counts.ready()).size, 2);
  Wire.last.says({ type: "update", id: "c", groups: [group("a", 0), group("c", 3)] });
  assert.deepEqual([...counts.groups.keys()], ["b", "c"]);
  const refused = client.watch({ area: {} }, {}, "r").ready();
  Wire.last.says({ type: "error", id: "r", code: "ERR_AREA_TOO_LARGE", message: "no" });
  await assert.rejects(refused, { code: "ERR_AREA_TOO_LARGE" });
  counts.move({ area: {}, as: "counts" });
  const moved = counts.ready();
  abort.abort();
  await assert.rejects(moved, { code: 1000 });
  await assert.rejects(counts.ready(), { code: 1000 });
  assert.equal(client.watches.has("c"), false);
  assert.deepEqual(Wire.last.sent.at(-1), { type: "unwatch", id: "c" });
  client.disconnect();
});

test("counts that were moved are ready with the snapshot of the new area", async () => {
  const client = new CustomerClient("http://a", { WebSocket: Wire, onState: () => {} }).connect();
  await client.ready();
  const counts = client.watch({ area: {}, as: "counts" }, {}, "c");
  const group = (name) => ({ group: name, lat: 0, long: 0, count: 1, open: 0, online: 0 });
  Wire.last.says({ type: "snapshot", id: "c", groups: [group("a")] });
  counts.move({ area: { b: 1 }, as: "counts" });
  let ready = false;
  const moved = counts.ready().finally(() => (ready = true));
  Wire.last.says({ type: "update", id: "c", groups: [group("of the old area")] });
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(ready, false);
  Wire.last.says({ type: "snapshot", id: "c", groups: [group("b")] });
  assert.deepEqual([...(await moved).keys()], ["b"]);
  client.disconnect();
});

test("a watch that a handler closes or moves during a snapshot is closed or not fresh after it", async () => {
  const client = new CustomerClient("http://a", { WebSocket: Wire, onState: () => {} }).connect();
  await client.ready();
  const card = (vendorId) => ({ vendorId, name: vendorId, open: true, primaryImage: null, online: true, lat: 1, long: 1, timestamp: 1 });
  const told = [];
  const tell = (name) => () => told.push(name);
  const closed = client.watch({ area: {} }, { onEntered: () => (told.push("entered"), closed.close()), onSnapshot: tell("snapshot"), onView: tell("view") }, "c");
  Wire.last.says({ type: "snapshot", id: "c", vendors: [card("a"), card("b")] });
  assert.deepEqual(told, ["entered"]);
  assert.equal(closed.fresh, false);
  const moved = client.watch({ area: {} }, { onEntered: () => moved.move({ area: { b: 1 } }) }, "m");
  Wire.last.says({ type: "snapshot", id: "m", vendors: [card("a")] });
  assert.equal(moved.fresh, false);
  Wire.last.says({ type: "snapshot", id: "m", vendors: [card("a")] });
  assert.equal(moved.fresh, true);
  client.disconnect();
});

test("a bye's delay is that of one wait, also while there is no token", async () => {
  const waits = [];
  let offline = false;
  const getToken = () => (offline ? Promise.reject(new Error("offline")) : "t");
  const onState = (_, { retryInMs }) => retryInMs !== undefined && waits.push(retryInMs);
  const client = new CustomerClient("http://a", { WebSocket: Wire, getToken, minDelay: 60_000, maxDelay: 60_000, random: () => 1, onState }).connect();
  await client.ready();
  offline = true;
  Wire.last.says({ type: "bye", reconnectAfterMs: 5 });
  Wire.last.ends(1012);
  for (let n = 0; n < 100 && waits.length < 2; n += 1) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(waits, [5, 60_000]);
  client.disconnect();
});

test("a client whose signal is already aborted does not connect", async () => {
  const signal = AbortSignal.abort();
  Wire.last = null;
  const customer = new CustomerClient("http://a", { WebSocket: Wire, signal, onState: () => {} }).connect();
  await assert.rejects(customer.ready(), { code: 1000 });
  const vendor = new VendorClient("http://a", { WebSocket: Wire, signal, queue: new MemoryQueue(), onState: () => {} });
  await vendor.connect();
  await assert.rejects(vendor.ready(), { code: 1000 });
  assert.deepEqual([customer.state, vendor.state, Wire.last], ["disconnected", "disconnected", null]);
});

test("what is no message ends the connection, and a bye without a delay is followed by the usual wait", async () => {
  const waits = [];
  const onState = (state, { retryInMs }) => state === "reconnecting" && waits.push(retryInMs);
  const given = { WebSocket: Wire, minDelay: 60_000, maxDelay: 60_000, random: () => 1, onState };
  for (const message of [null, 1, [], {}, { type: 1 }]) {
    const client = new CustomerClient("http://a", given).connect();
    await client.ready();
    Wire.last.says(message);
    assert.deepEqual([client.state, client.link.detail.reason], ["reconnecting", "what came is not a message"]);
    client.disconnect();
  }
  const client = new CustomerClient("http://a", given).connect();
  await client.ready();
  Wire.last.says({ type: "bye" });
  Wire.last.ends(1012);
  assert.deepEqual(waits, Array(6).fill(60_000));
  client.disconnect();
});

test("a watch whose signal is already aborted is closed", async () => {
  const client = new CustomerClient("http://a", { WebSocket: Wire, onState: () => {} }).connect();
  await client.ready();
  const watch = client.watch({ area: {} }, { signal: AbortSignal.abort() }, "w");
  await assert.rejects(watch.ready(), { code: 1000 });
  assert.deepEqual([client.watches.size, Wire.last.sent], [0, []]);
  client.disconnect();
});

test("pings of the same millisecond are kept, also with null for the timestamp", async (t) => {
  t.mock.timers.enable({ apis: ["Date"], now: 1_000_000 });
  const client = new VendorClient("http://a", { WebSocket: Wire, queue: new MemoryQueue() });
  for (const timestamp of [null, undefined, null]) await client.ping({ lat: 1, long: 2, timestamp });
  assert.deepEqual([...client.waiting.keys()], [1_000_000, 1_000_001, 1_000_002]);
});

test("a ping whose timestamp is corrected is stored with its ack, also for who asks after the hello", async () => {
  const client = await new VendorClient("http://a", { WebSocket: Wire, queue: new MemoryQueue(), onState: () => {} }).connect();
  const at = await client.ping({ lat: 1, long: 2 });
  Wire.last.says({ type: "hello", vendorId: "v", time: Date.now() + 3_600_000, durable: null, maxBatch: 500 });
  let stored = false;
  const promise = client.whenStored(at).then(() => (stored = true));
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(stored, false);
  Wire.last.says({ type: "ack", seq: 1 });
  await promise;
  await client.whenStored(at);
  await client.disconnect();
});

test("the error of one watch is not the reason of a lost connection, and delays no reconnect", async () => {
  const details = [];
  const onState = (_, detail) => details.push(detail);
  const client = new CustomerClient("http://a", { WebSocket: Wire, minDelay: 1_000, random: () => 1, onState, onError: () => {} }).connect();
  await client.ready();
  client.watch({ area: {} }, {}, "w");
  Wire.last.says({ type: "error", id: "w", code: "ERR_OVERLOADED", message: "not now", retryAfterMs: 5_000 });
  Wire.last.ends(1006);
  assert.deepEqual(details.at(-1), { code: 1006, reason: "", retryInMs: 1_000 });
  client.disconnect();
});

test("where no more watches are allowed, one of them is the probe of a silent connection", async () => {
  const client = new CustomerClient("http://a", { WebSocket: Wire, silence: 10, answerTimeout: 20, onState: () => {} }).connect();
  await client.ready();
  client.watch({ area: {} }, {}, "w");
  const socket = Wire.last;
  const watched = [];
  const own = socket.send;
  socket.send = (text) => {
    own.call(socket, text);
    const { id } = socket.sent.at(-1);
    watched.push(id);
    const full = { type: "error", id, code: "ERR_TOO_MANY_WATCHES", message: "32 watches are open" };
    setTimeout(() => socket.onmessage && socket.says(id === "w" ? { type: "snapshot", id, vendors: [] } : full));
  };
  socket.says({ type: "snapshot", id: "w", vendors: [] });
  for (let n = 0; n < 100 && watched.length < 3; n += 1) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.deepEqual(watched.slice(0, 3), ["~probe", "w", "w"]);
  client.disconnect();
});

test("a watch that is to be asked for again is asked for once, and not after disconnect", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const client = new CustomerClient("http://a", { WebSocket: Wire, onError: () => {}, onState: () => {} }).connect();
  for (let n = 0; n < 10; n += 1) await null;
  t.mock.timers.tick(1);
  assert.equal(client.state, "connected");
  client.watch({ area: {} }, {}, "w");
  const later = { type: "error", id: "w", code: "ERR_OVERLOADED", message: "later", retryAfterMs: 1_000 };
  for (let n = 0; n < 3; n += 1) Wire.last.says(later);
  t.mock.timers.tick(1_000);
  assert.equal(Wire.last.sent.length, 2, "asked for once");
  Wire.last.says({ ...later, retryAfterMs: 3_600_000 });
  assert.ok("watch w" in client.link.timers);
  client.disconnect();
  assert.deepEqual(client.link.timers, {});
});

test("in the foreground the app reconnects at once", async () => {
  let change;
  let removed = 0;
  const appState = { addEventListener: (_, listener) => ((change = listener), { remove: () => (removed += 1) }) };
  const states = [];
  const client = new CustomerClient("http://a", { WebSocket: Wire, appState, minDelay: 60_000, random: () => 1, onState: (state) => states.push(state) }).connect();
  await client.ready();
  Wire.last.ends(1006);
  assert.equal(client.state, "reconnecting");
  change("background");
  assert.equal(client.state, "reconnecting");
  change("active");
  await client.ready();
  client.disconnect();
  assert.equal(removed, 1);
  assert.deepEqual(states, ["connecting", "connected", "reconnecting", "connecting", "connected", "disconnected"]);
});

class SlowQueue extends MemoryQueue {
  opened = false;
  async load() {
    await new Promise((resolve) => setTimeout(resolve, 10));
    this.opened = true;
    return super.load();
  }
  async close() {
    await new Promise((resolve) => setTimeout(resolve, 10));
    this.opened = false;
  }
}

test("of connect and disconnect in any order the last one counts, and the queue is open as long as it is needed", async () => {
  const queue = new SlowQueue();
  const client = new VendorClient("http://a", { WebSocket: Wire, queue, onState: () => {} });
  const first = client.connect();
  await client.disconnect();
  await first;
  assert.deepEqual([client.state, queue.opened], ["disconnected", false]);
  void client.connect();
  void client.disconnect();
  await client.connect();
  assert.deepEqual([client.state, queue.opened], ["connecting", true]);
  await client.disconnect();
  assert.deepEqual([client.state, queue.opened], ["disconnected", false]);
});

test("promises end when the app disconnects while the queue is opened", async () => {
  const client = new VendorClient("http://a", { WebSocket: Wire, queue: new SlowQueue(), onState: () => {} });
  await client.ping({ lat: 1, long: 2 });
  await client.disconnect();
  const connecting = client.connect();
  const ended = [client.ready(), client.flushed()].map((promise) => assert.rejects(promise, { code: 1000 }));
  await client.disconnect();
  await Promise.all([connecting, ...ended]);
});

test("a queue that could not be opened is opened by the next connect", async () => {
  class Blocked extends MemoryQueue {
    times = 0;
    async load() {
      if (++this.times === 1) throw new Error("open in another version of this page");
      return super.load();
    }
  }
  const client = new VendorClient("http://a", { WebSocket: Wire, queue: new Blocked(), onState: () => {} });
  await assert.rejects(client.connect(), /another version/);
  await client.connect();
  await client.disconnect();
});

test("a token that never comes is asked for again", async () => {
  let asked = 0;
  const getToken = () => (++asked === 1 ? new Promise(() => {}) : "t");
  const client = new CustomerClient("http://a", { WebSocket: Wire, getToken, connectTimeout: 20, minDelay: 1, onState: () => {} }).connect();
  await client.ready();
  assert.equal(asked, 2);
  client.disconnect();
});

test("a token that is the same as before is asked for again until there is a new one", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const token = (exp) => ["e30", Buffer.from(JSON.stringify({ exp })).toString("base64url"), "x"].join(".");
  let given = token(1_100);
  const client = new CustomerClient("http://a", { WebSocket: Wire, getToken: () => given, onState: () => {} }).connect();
  const settled = async () => { for (let n = 0; n < 10; n += 1) await null; };
  await settled();
  t.mock.timers.tick(1);
  assert.equal(client.state, "connected");
  t.mock.timers.tick(71_000);
  await settled();
  given = undefined;
  t.mock.timers.tick(5_001);
  await settled();
  assert.deepEqual(Wire.last.sent.filter(({ type }) => type === "auth"), []);
  given = token(9_000);
  t.mock.timers.tick(5_001);
  await settled();
  assert.deepEqual(Wire.last.sent.filter(({ type }) => type === "auth"), [{ type: "auth", token: given }]);
  client.disconnect();
});

test("a clock that is set back hides no dead connection", async () => {
  const now = Date.now;
  const client = new CustomerClient("http://a", { WebSocket: Wire, silence: 20, answerTimeout: 20, minDelay: 60_000, random: () => 1, onState: () => {} }).connect();
  await client.ready();
  Date.now = () => now() - 3_600_000;
  try {
    for (let n = 0; n < 100 && client.state !== "reconnecting"; n += 1) await new Promise((resolve) => setTimeout(resolve, 10));
    assert.equal(client.state, "reconnecting");
  } finally {
    Date.now = now;
    client.disconnect();
  }
});

test("a refused watch is refused also for who asks later, and one to be asked for again is not refused", async () => {
  const client = new CustomerClient("http://a", { WebSocket: Wire, onError: () => {}, onState: () => {} }).connect();
  await client.ready();
  const watch = client.watch({ area: {} }, {}, "w");
  Wire.last.says({ type: "error", id: "w", code: "ERR_AREA_TOO_LARGE", message: "no" });
  await assert.rejects(watch.ready(), { code: "ERR_AREA_TOO_LARGE" });
  watch.move({ area: { a: 1 } });
  const ready = watch.ready();
  Wire.last.says({ type: "error", id: "w", code: "ERR_OVERLOADED", message: "later", retryAfterMs: 1 });
  Wire.last.says({ type: "snapshot", id: "w", vendors: [] });
  assert.equal((await ready).size, 0);
  client.disconnect();
});

test("a ping that no queue could keep is the caller's mistake", async () => {
  const client = new VendorClient("http://a", { WebSocket: Wire, queue: new MemoryQueue() });
  await assert.rejects(client.ping({ lat: 1, long: 2, timestamp: new Date() }), TypeError);
  await assert.rejects(client.ping({ lat: 1, long: 2, timestamp: NaN }), TypeError);
  await assert.rejects(client.ping({ lat: null, long: 2 }), RangeError);
  assert.equal(client.size, 0);
});

test("a full disk is told, and costs no ping that is written afterwards", { skip: process.platform === "win32" }, async () => {
  const path = join(await mkdtemp(join(tmpdir(), "queue-")), "pings");
  const program = `
    import { FileQueue } from ${JSON.stringify(new URL("../../clients/js/file-queue.js", import.meta.url).href)};
    const ping = (timestamp) => ({ timestamp, lat: 1, long: 1 });
    const queue = new FileQueue(${JSON.stringify(path)});
    await queue.load();
    const many = Array.from({ length: 500 }, (_, n) => ping(n));
    let refused = false;
    await queue.write(many, []).catch(() => (refused = true));
    await queue.write([ping(1000)], many.map(({ timestamp }) => timestamp));
    await queue.close();
    console.log(refused);`;
  const { execFileSync } = await import("node:child_process");
  const said = execFileSync("bash", ["-c", 'ulimit -f 8; exec "$0" --input-type=module -e "$1"', process.execPath, program], { encoding: "utf8" });
  assert.equal(said.trim(), "true");
  assert.deepEqual((await new FileQueue(path).load()).map(({ timestamp }) => timestamp), [1000]);
});

test("what a proxy refuses is a refusal too", async () => {
  const { createServer } = await import("node:http");
  const server = createServer((_, answer) => answer.writeHead(502).end("<html>Bad Gateway</html>"));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const url = `http://127.0.0.1:${server.address().port}`;
    await assert.rejects(signIn(url, "code"), { name: "VentaError", code: "502" });
    await assert.rejects(new Alerts(url).get("a"), { name: "VentaError", code: "502" });
  } finally {
    server.closeAllConnections();
    server.close();
  }
});
