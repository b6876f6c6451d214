import type { Ping, Queue } from "./venta.js";

/** React Native's `AsyncStorage`, or a similar store; it may return values or promises. */
export interface KeyValueStorage {
  getItem(key: string): Promise<string | null> | string | null | undefined;
  setItem(key: string, value: string): Promise<unknown> | unknown;
  removeItem(key: string): Promise<unknown> | unknown;
}

export declare class StorageQueue implements Queue {
  constructor(storage: KeyValueStorage, name?: string);
  load(): Promise<Ping[]>;
  write(put: Ping[], remove: number[]): Promise<void>;
  close(): Promise<void>;
}
