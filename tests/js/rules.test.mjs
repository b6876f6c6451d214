import assert from "node:assert/strict";
import { mkdtemp, readFile, writeFile, appendFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { FileQueue } from "../../clients/js/file-queue.js";
import { VendorClient, Watch, backoff, comeBack, expiry } from "../../clients/js/venta.js";

test("close codes are answered as the protocol's table says", () => {
  const table = { 1001: "yes", 1012: "yes", 1009: "no", 4400: "no", 4401: "token", 4403: "no", 4404: "no",
    4408: "yes", 4429: "later", 4508: "yes", 1006: "yes", 1011: "yes" };
  for (const [code, answer] of Object.entries(table)) assert.equal(comeBack(Number(code)), answer, code);
});

test("waits grow, are spread from nothing to their bound, and have a largest", () => {
  assert.deepEqual([1, 2, 3, 9, 999].map((n) => backoff(n, 1000, 30_000, 1)), [1000, 2000, 4000, 30_000, 30_000]);
  assert.equal(backoff(5, 1000, 30_000, 0), 0);
});

test("a token's end is read from it, and whatever is no JWT has none", () => {
  const token = ["e30", Buffer.from('{"exp":1732467600,"n":"żółw?>"}').toString("base64url"), "x"].join(".");
  assert.equal(expiry(token), 1732467600000);
  for (const other of ["", "a.b.c", "a", `e30.${Buffer.from("{}").toString("base64url")}.x`]) assert.equal(expiry(other), null);
});

test("a queue's file survives a torn last line, and is written anew before it grows for ever", async () => {
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
  const client = await new VendorClient("http://127.0.0.1:9", { WebSocket: Wire }).start();
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
  await client.stop();
});

test("the types name what the modules export, and the classes' members are there", async () => {
  const folder = new URL("../../clients/js/", import.meta.url);
  for (const name of ["venta", "file-queue"]) {
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
