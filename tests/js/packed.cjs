// CommonJS: the package as `require` sees it.
const assert = require("node:assert/strict");
const venta = require("@venta/client");
assert.deepEqual(
  Object.keys(venta).sort(),
  ["CustomerClient", "IndexedDbQueue", "MemoryQueue", "VendorClient", "VentaError", "Watch", "expiry", "reconnectRule", "reconnectWait", "renewIn", "signIn"],
);
assert.equal(new venta.CustomerClient("https://a", { WebSocket: class {} }).link.url, "wss://a/v1/watch");
import("@venta/client").then((module) => assert.deepEqual(Object.keys(module).sort(), Object.keys(venta).sort()));
