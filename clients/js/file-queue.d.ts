import type { Ping, Queue } from "./venta.js";

/** A vendor's queue in a file, for Node: every change is a line, and on the disk before it counts. */
export declare class FileQueue implements Queue {
  constructor(path: string);
  load(): Promise<Ping[]>;
  write(put: Ping[], remove: number[]): Promise<void>;
  close(): Promise<void>;
}
