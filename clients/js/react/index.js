/** React hooks for the live vendors of a Venta server, on the web and in React Native. */

import { createContext, createElement, useCallback, useContext, useEffect, useMemo, useRef, useSyncExternalStore } from "react";

const Context = createContext(null);

/** Provides a `CustomerClient` to hooks in its subtree, and keeps it connected while mounted. */
export function VentaProvider({ client, children }) {
  useEffect(() => {
    client.connect();
    return () => client.disconnect();
  }, [client]);
  return createElement(Context.Provider, { value: client }, children);
}

export function useVentaClient() {
  const client = useContext(Context);
  if (client === null) throw new Error("put a <VentaProvider client={…}> around this component");
  return client;
}

/** The state of the connection: "connecting", "connected", "reconnecting", "disconnected" or "failed". */
export function useConnectionState() {
  const client = useVentaClient();
  const subscribe = useCallback((changed) => (client.on("state", changed), () => client.off("state", changed)), [client]);
  return useSyncExternalStore(subscribe, () => client.state, () => "disconnected");
}

const NOTHING = { vendors: [], groups: [], fresh: false, error: null };

function useWatch(wanted) {
  const client = useVentaClient();
  const key = wanted === null ? null : JSON.stringify(wanted);
  const store = useRef(null);
  store.current ??= { value: NOTHING, listeners: new Set() };
  const subscribe = useCallback((changed) => {
    store.current.listeners.add(changed);
    return () => store.current.listeners.delete(changed);
  }, []);

  const watching = key !== null;
  useEffect(() => {
    if (!watching) return undefined;
    const held = store.current;
    held.publish = (error = null) => {
      const { vendors, groups, fresh } = held.watch;
      held.value = { vendors: [...vendors.values()], groups: [...groups.values()], fresh, error };
      for (const listener of held.listeners) listener();
    };
    held.key = key;
    held.watch = client.watch(JSON.parse(key), { onView: () => held.publish(), onError: held.publish });
    const state = () => held.publish(held.value.error);
    client.on("state", state);
    return () => {
      client.off("state", state);
      held.watch.close();
      held.value = NOTHING;
    };
  }, [client, watching]);

  // moved rather than opened again, so that the old view stays until the snapshot of the new area
  useEffect(() => {
    const held = store.current;
    if (!watching || held.key === key) return;
    held.key = key;
    held.watch.move(JSON.parse(key));
    held.publish();
  }, [watching, key]);

  return useSyncExternalStore(subscribe, () => store.current.value, () => NOTHING);
}

/**
 * The vendors in an area: `{vendors, fresh, error}`. A new area moves the watch; the old vendors stay until the new
 * snapshot. null watches nothing.
 */
export function useVendors(area, { open, interval } = {}) {
  const { vendors, fresh, error } = useWatch(area && { area, ...(open && { open }), ...(interval && { interval }) });
  return useMemo(() => ({ vendors, fresh, error }), [vendors, fresh, error]);
}

/** One vendor: `{vendor, fresh, error}`; `vendor` is null while it is not on the map. */
export function useVendor(vendorId) {
  const { vendors, fresh, error } = useWatch(vendorId && { vendors: [vendorId] });
  return useMemo(
    () => ({ vendor: vendors.find((one) => one.vendorId === vendorId) ?? null, fresh, error }),
    [vendors, vendorId, fresh, error],
  );
}

/** Groups of vendors with counts, for maps zoomed out: `{groups, fresh, error}`. */
export function useCounts(area, { open, interval, detail } = {}) {
  const { groups, fresh, error } = useWatch(
    area && { area, as: "counts", ...(open && { open }), ...(interval && { interval }), ...(detail && { detail }) },
  );
  return useMemo(() => ({ groups, fresh, error }), [groups, fresh, error]);
}
