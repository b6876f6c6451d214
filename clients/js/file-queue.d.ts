import type { Ping, Queue } from "./venta.js";

/** A vendor's queue in a file, for Node: an append-only log, flushed to disk before `write` resolves. */
export declare class FileQueue implements Queue {
  constructor(path: string);
  load(): Promise<Ping[]>;
  write(put: Ping[], remove: number[]): Promise<void>;
  close(): Promise<void>;
}
