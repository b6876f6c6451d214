// The JavaScript client as a program for `streamer conformance`: reads commands as JSON lines on stdin, writes events.
// node testee.mjs vendor|customer URL SETTINGS

import { createInterface } from "node:readline";
import { CustomerClient, MemoryQueue, VendorClient } from "../js/venta.js";
import { FileQueue } from "../js/file-queue.js";

const [kind, url, settings] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4] ?? "{}")];
const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }));
let token = settings.token ?? null;

// the error of the device's clock in ms
let wrong = settings.clock ?? 0;
const real = Date.now;
Date.now = () => real() + wrong;

const options = {
  ...settings,
  getToken: ({ refresh }) => {
    say("token", { refresh });
    return token;
  },
  onState: (state, detail) => say("state", { state, ...detail }),
  onError: (error) => say("error", { error }),
};

const { client, ...commands } = kind === "vendor" ? vendor() : customer();

function vendor() {
  const client = new VendorClient(url, {
    ...options,
    queue: settings.file ? new FileQueue(settings.file) : new MemoryQueue(),
    onStored: (pings) => say("stored", { timestamps: pings.map(({ timestamp }) => timestamp) }),
    onRejected: (ping, { code }) => say("rejected", { timestamp: ping.timestamp, code }),
    onDropped: (pings) => say("dropped", { timestamps: pings.map(({ timestamp }) => timestamp) }),
  });
  return {
    client,
    ping: async ({ fixes }) => ({ timestamps: await Promise.all(fixes.map((fix) => client.ping(fix))) }),
    open: ({ open, hidden }) => client.setOpen(open, { hidden }),
    flushed: () => client.flushed(),
    size: () => ({ size: client.size }),
  };
}

function customer() {
  const client = new CustomerClient(url, options);
  const watches = new Map();
  const held = new Map();
  // the events alone must produce the view
  const handlers = {
    onEntered: (card) => (held.has(card.vendorId) ? say("wrong", { entered: card }) : held.set(card.vendorId, card)),
    onMoved: (card) => (held.has(card.vendorId) ? held.set(card.vendorId, card) : say("wrong", { moved: card })),
    onChanged: (card) => (held.has(card.vendorId) ? held.set(card.vendorId, card) : say("wrong", { changed: card })),
    onLeft: (card) => held.delete(card.vendorId) || say("wrong", { left: card }),
  };
  return {
    client,
    watch: ({ wanted, id }) => void watches.set(id, client.watch(wanted, watches.size === 0 ? handlers : {}, id)),
    move: ({ wanted, id }) => watches.get(id).move(wanted),
    unwatch: ({ id }) => watches.get(id).close(),
    view: ({ id }) => {
      const { fresh, vendors, groups } = watches.get(id);
      if (watches.size === 1 && JSON.stringify([...held].sort()) !== JSON.stringify([...vendors].sort())) say("wrong", { id });
      return { fresh, vendors: [...vendors.values()], groups: [...groups.values()] };
    },
  };
}

commands.connect = async () => void (await client.connect());
commands.disconnect = () => client.disconnect();
commands.token = ({ token: given }) => void (token = given);
commands.clock = ({ by }) => void (wrong += by);

await commands.connect();
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, number, ...fields } = JSON.parse(line);
  Promise.resolve(commands[name](fields)).then((answer) => say("done", { number, ...answer }));
}
process.exit(0);
