// A vendor or customer app on the JavaScript client, told what to do by JSON lines on stdin; what happens goes to stdout.

import { createInterface } from "node:readline";
import { CustomerClient, MemoryQueue, VendorClient } from "../../clients/js/venta.js";
import { FileQueue } from "../../clients/js/file-queue.js";

const [kind, url, settings] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4] ?? "{}")];
const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }));
let token = settings.token ?? null;

if (settings.clock) {
  // A device whose clock is wrong by so many ms.
  const real = Date.now;
  Date.now = () => real() + settings.clock;
}

const options = {
  minDelay: 50,
  maxDelay: 300,
  silence: settings.silence ?? 30_000,
  answerTimeout: settings.answerTimeout ?? 15_000,
  getToken: ({ refresh }) => {
    say("token", { refresh });
    return token;
  },
  onState: (state, detail) => say("state", { state, ...detail }),
  onError: (error) => say("error", { error }),
};

const commands =
  kind === "vendor"
    ? vendor(new VendorClient(url, { ...options, vendorId: settings.vendorId, maxQueue: settings.maxQueue ?? 100_000,
        queue: settings.file ? new FileQueue(settings.file) : new MemoryQueue(),
        onHello: () => say("hello"),
        onStored: (pings) => say("stored", { timestamps: pings.map((p) => p.timestamp) }),
        onRejected: (ping, reject) => say("rejected", { timestamp: ping.timestamp, code: reject.code }),
        onDropped: (pings) => say("dropped", { timestamps: pings.map((p) => p.timestamp) }),
      }))
    : customer(new CustomerClient(url, options));

function vendor(client) {
  return {
    client,
    ping: async ({ fixes }) => ({ timestamps: await Promise.all(fixes.map((fix) => client.ping(fix))) }),
    open: ({ open }) => client.setOpen(open),
    flushed: () => client.flushed(),
    size: () => ({ size: client.size, offset: client.clockOffset }),
    stop: () => client.stop(),
    start: () => client.start().then(() => {}),
  };
}

function customer(client) {
  let held = new Map();
  const watches = new Map();
  // The callbacks alone must tell the same as the view.
  const handlers = {
    onEntered: (card) => (held.has(card.vendorId) ? say("wrong", { entered: card }) : held.set(card.vendorId, card)),
    onMoved: (card) => (held.has(card.vendorId) ? held.set(card.vendorId, card) : say("wrong", { moved: card })),
    onChanged: (card) => (held.has(card.vendorId) ? held.set(card.vendorId, card) : say("wrong", { changed: card })),
    onLeft: (card) => held.delete(card.vendorId) || say("wrong", { left: card }),
    onError: (error) => say("refused", { error }),
  };
  return {
    client,
    start: () => void client.start(),
    stop: () => client.stop(),
    watch: ({ wanted, id }) => void watches.set(id, client.watch(wanted, handlers, id)),
    move: ({ wanted, id }) => watches.get(id).move(wanted),
    view: ({ id }) => {
      const { fresh, vendors } = watches.get(id);
      const cards = [...vendors.values()];
      if (JSON.stringify([...held].sort()) !== JSON.stringify([...vendors].sort())) say("wrong", { id, cards });
      return { fresh, cards };
    },
  };
}

await commands.start();
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, number, ...fields } = JSON.parse(line);
  if (name === "token") token = fields.token;
  else Promise.resolve(commands[name](fields)).then((answer) => say("done", { number, ...answer }));
}
process.exit(0);
