import assert from "node:assert/strict";
import { test } from "node:test";
import { CustomerClient } from "@venta/client";
import { useConnectionState, useCounts, useVendor, useVendors, VentaProvider } from "@venta/react";
import { createElement } from "react";
import { act, create } from "react-test-renderer";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;

class Wire {
  constructor() {
    Wire.last = this;
    this.sent = [];
    this.readyState = 1;
    setTimeout(() => act(() => this.onopen?.()));
  }
  send(text) {
    this.sent.push(JSON.parse(text));
  }
  close() {}
  says(message) {
    return act(() => this.onmessage({ data: JSON.stringify(message) }));
  }
}

const card = (vendorId, more = {}) => ({ vendorId, name: vendorId, open: true, primaryImage: null, online: true, lat: 1, long: 1, timestamp: 1, ...more });
const circle = (radius) => ({ center: { lat: 1, long: 2 }, radius });
const soon = () => act(() => new Promise((resolve) => setTimeout(resolve, 10)));

/** A component on a client of its own; unmounted after the test `t` also if that fails, as its client's timers keep node running. */
async function rendered(t, Component, props) {
  const client = new CustomerClient("http://a", { WebSocket: Wire, onError: () => {}, onState: () => {} });
  const whole = (given) => createElement(VentaProvider, { client }, createElement(Component, given));
  let tree;
  const end = () => act(() => tree?.unmount());
  t.after(end);
  await act(() => (tree = create(whole(props))));
  await soon();
  return { client, text: () => tree.toJSON(), update: (given) => act(() => tree.update(whole(given))), end };
}

test("useVendors follows an area, its changes, and an error", async (t) => {
  let renders = 0;
  const App = ({ radius }) => {
    renders += 1;
    const { vendors, fresh, error } = useVendors(circle(radius), { open: true });
    return JSON.stringify([vendors.map((one) => [one.vendorId, one.lat]), fresh, error?.code ?? null, useConnectionState()]);
  };
  const app = await rendered(t, App, { radius: 100 });
  assert.deepEqual(Wire.last.sent.map(({ id, ...sent }) => sent), [{ type: "watch", area: circle(100), open: true }]);
  const { id } = Wire.last.sent[0];
  await Wire.last.says({ type: "snapshot", id, vendors: [card("a"), card("b")] });
  assert.equal(app.text(), '[[["a",1],["b",1]],true,null,"connected"]');
  await Wire.last.says({ type: "update", id, moved: [{ vendorId: "a", lat: 2, long: 1, timestamp: 2 }], left: ["b"] });
  assert.equal(app.text(), '[[["a",2]],true,null,"connected"]');
  const before = renders;
  await app.update({ radius: 100 });
  assert.equal(Wire.last.sent.length, 1, "an equal area is no new watch");
  assert.ok(renders <= before + 1);
  await app.update({ radius: 200 });
  assert.deepEqual(Wire.last.sent.slice(1), [{ type: "watch", id, area: circle(200), open: true }], "the watch moves");
  assert.equal(app.text(), '[[["a",2]],false,null,"connected"]', "the old view stays until the snapshot");
  await Wire.last.says({ type: "snapshot", id, vendors: [card("c")] });
  assert.equal(app.text(), '[[["c",1]],true,null,"connected"]');
  await app.update({ radius: 300 });
  await Wire.last.says({ type: "error", id, code: "ERR_AREA_TOO_LARGE", message: "no" });
  assert.equal(app.text(), '[[["c",1]],false,"ERR_AREA_TOO_LARGE","connected"]');
  await app.update({ radius: 100 });
  assert.equal(app.text(), '[[["c",1]],false,null,"connected"]');
  await app.end();
  assert.equal(app.client.watches.size, 0);
  assert.equal(app.client.state, "disconnected");
});

test("useVendor is one vendor or null, useCounts groups", async (t) => {
  const App = ({ id }) => {
    const { vendor } = useVendor(id);
    const { groups } = useCounts(circle(5));
    return JSON.stringify([vendor?.name ?? null, groups.length]);
  };
  const app = await rendered(t, App, { id: null });
  assert.equal(Wire.last.sent.length, 1, "no id, no watch");
  await Wire.last.says({ type: "snapshot", id: Wire.last.sent[0].id, groups: [{ group: "g", count: 2, lat: 0, long: 0, open: 0, online: 0 }] });
  await app.update({ id: "a" });
  await Wire.last.says({ type: "snapshot", id: Wire.last.sent.at(-1).id, vendors: [card("a")] });
  assert.equal(app.text(), '["a",1]');
  await app.update({ id: "b" });
  assert.deepEqual(Wire.last.sent.at(-1).vendors, ["b"]);
  assert.equal(app.text(), "[null,1]", "another vendor is not shown in its place");
  await Wire.last.says({ type: "snapshot", id: Wire.last.sent.at(-1).id, vendors: [card("b")] });
  assert.equal(app.text(), '["b",1]');
  await app.update({ id: null });
  assert.equal(Wire.last.sent.at(-1).type, "unwatch");
  assert.equal(app.text(), "[null,1]");
});
