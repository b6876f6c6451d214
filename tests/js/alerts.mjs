// Everything that the alerts of the JavaScript client can do, against a real server: node alerts.mjs URL TOKEN

import assert from "node:assert/strict";
import { Alerts } from "../../clients/js/alerts.js";

const [url, token] = process.argv.slice(2);
const alerts = new Alerts(`${url}/`, { getToken: () => token });
const all = async (items) => {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
};

const wanted = { area: { center: { lat: 52.2297, long: 21.0122 }, radius: 500 }, on: ["entered"], url: "https://hooks.example.com/a", metadata: { user: 7 } };
const { secret, ...created } = await alerts.create(wanted, { key: "once" });
assert.match(secret, /^whsec_/);
assert.equal((await alerts.create(wanted, { key: "once" })).id, created.id);
assert.deepEqual((await alerts.get(created.id)).area, wanted.area);
assert.deepEqual((await all(alerts.list())).map((one) => one.id), [created.id]);
const changed = await alerts.update(created.id, { quiet: 0, metadata: null });
assert.deepEqual([changed.quiet, changed.metadata], [0, undefined]);
const { id } = await alerts.test(created.id);
assert.deepEqual((await all(alerts.deliveries(created.id))).map((one) => one.id), [id]);
await alerts.delete(created.id);
await assert.rejects(alerts.get(created.id), { name: "VentaError", code: "ERR_ALERT_NOT_FOUND" });
await assert.rejects(new Alerts(url).create(wanted), { code: "ERR_UNAUTHORIZED" });
for (let number = 0; number < 101; number += 1) await alerts.create(wanted);
assert.equal(new Set((await all(alerts.list())).map((one) => one.id)).size, 101);
