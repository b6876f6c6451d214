/** Compiled under --strict: what an app writes against the types of the packages. */

import { CustomerClient, VendorClient, VentaError, signIn, type Card, type Group } from "@venta/client";
import { Alerts } from "@venta/client/alerts";
import { StorageQueue } from "@venta/client/storage-queue";
import { useVendors, useVendor, useCounts } from "@venta/react";
const c = new CustomerClient("https://a", { signal: new AbortController().signal });
c.on("state", (state, detail) => { const s: string = state; const n: number | undefined = detail.code; void s; void n; });
const w = c.watch({ area: { center: { lat: 1, long: 2 }, radius: 3 } }, { onEntered: (card: Card) => void card.name });
w.on("moved", (card, before) => void (card.lat - before.lat));
c.watch({ area: { polygon: [[1, 2]] }, as: "counts", detail: 20 }, { onCounts: (groups: ReadonlyMap<string, Group>) => void groups });
const v = new VendorClient(new URL("https://a"), { queue: new StorageQueue({ getItem: async () => null, setItem: async () => {}, removeItem: async () => {} }) });
v.on("rejected", (ping, reject) => void [ping.lat, reject.code]);
navigator.geolocation.watchPosition((position) => { void v.ping(position); void v.ping(position.coords); });
void v.ping({ lat: 1, long: 2, heading: null });
void v.ping({ lat: 1, long: 2 }).then((at) => v.whenStored(at)).catch((e: unknown) => e instanceof VentaError && e.code);
const alerts = new Alerts("https://a", { getToken: async () => "t" });
void alerts.create({ vendors: ["v"], on: ["opened"], url: "https://b" }).then(({ id, secret }) => alerts.update(id, { metadata: { secret }, open: null }));
void (async () => { for await (const one of alerts.deliveries("a")) void one.attempts[0]?.status; })();
void signIn("https://a", "x").then(({ token }) => token.length);
export function X() { const { vendors } = useVendors({ center: { lat: 1, long: 2 }, radius: 3 }); const { vendor } = useVendor(null); const { groups } = useCounts(null); return vendors.length + groups.length + (vendor?.lat ?? 0); }
