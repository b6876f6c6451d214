/** The client of the Venta location streamer. Degrees (WGS 84), metres, m/s, epoch milliseconds. */

export interface Position {
  lat: number;
  long: number;
}

export interface Fix extends Position {
  vendorId: string;
  timestamp: number;
  /** Degrees clockwise from north. */
  heading?: number;
  /** Metres per second. */
  speed?: number;
}

export interface Card extends Fix {
  name: string;
  /** Open for business. */
  open: boolean;
  primaryImage: string | null;
  /** Its app is connected, or was a minute ago. */
  online: boolean;
}

export type Area =
  | { center: Position; radius: number }
  | { ne: Position; sw: Position }
  | { polygon: [long: number, lat: number][] };

/** What to watch: an area or some vendors; only those open; no more often than each `interval` ms. */
export type Wanted = ({ area: Area } | { vendors: string[] }) & { open?: boolean; interval?: number };

/**
 * "connecting", "open", "waiting" (for the next try), "stopped" (by `stop`), or "ended": the server said not to come
 * back; `detail.code` and `detail.reason` say why, `start` tries anew.
 */
export type State = "connecting" | "open" | "waiting" | "stopped" | "ended";

export interface StateDetail {
  /** The close code; 1006 where there was none. */
  code?: number;
  reason?: string;
  retryInMs?: number;
}

/** What the server said of something it could not take; the codes are those of the protocol. */
export interface ServerError {
  type: "error";
  code: string;
  message: string;
  id?: string;
  retryAfterMs?: number;
}

export interface LinkOptions {
  /**
   * The token to connect with, asked for before every connection. `refresh`: the last one was refused, or ends soon.
   * The same token again after a refusal ends the connection for good.
   */
  getToken?: (asked: { refresh: boolean }) => string | null | Promise<string | null>;
  /** Another WebSocket than the runtime's own. */
  WebSocket?: unknown;
  /** The first wait before coming back is up to this, ms (1,000); each failure doubles it … */
  minDelay?: number;
  /** … up to this, ms (30,000). What the server asks for goes before. */
  maxDelay?: number;
  /** Longest wait for a connection, ms (15,000). */
  connectTimeout?: number;
  /** After so long a silence the server is asked for an answer, ms (30,000) … */
  silence?: number;
  /** … which has to come within this, ms (15,000). */
  answerTimeout?: number;
  onState?: (state: State, detail: StateDetail) => void;
  onError?: (error: ServerError) => void;
}

export interface WatchHandlers {
  onEntered?: (card: Card) => void;
  /** Its position is new. */
  onMoved?: (card: Card, before: Card) => void;
  /** Its name, image, `open` or `online` is new. */
  onChanged?: (card: Card, before: Card) => void;
  onLeft?: (card: Card) => void;
  /** The view was compared with a snapshot: it is exact again. */
  onSnapshot?: (vendors: ReadonlyMap<string, Card>) => void;
  /** After each message that changed the view. */
  onView?: (vendors: ReadonlyMap<string, Card>) => void;
  onError?: (error: ServerError) => void;
}

export declare class Watch {
  readonly id: string;
  readonly wanted: Wanted;
  readonly vendors: ReadonlyMap<string, Card>;
  /** False while not connected or moved but not yet answered: `vendors` is then what was last known. */
  readonly fresh: boolean;
  move(wanted: Wanted): void;
  close(): void;
}

export declare class CustomerClient {
  constructor(url: string | URL, options?: LinkOptions);
  readonly state: State;
  readonly heard: number | null;
  readonly watches: ReadonlyMap<string, Watch>;
  start(): this;
  stop(): void;
  retry(): void;
  watch(wanted: Wanted, handlers?: WatchHandlers, id?: string): Watch;
}

export interface Ping extends Position {
  timestamp: number;
  heading?: number;
  speed?: number;
  accuracy?: number;
}

/** Where pings wait. `write` must not resolve before it lasts; removals of what is not there are harmless. */
export interface Queue {
  load(): Promise<Ping[]>;
  write(put: Ping[], remove: number[]): Promise<void>;
  close(): Promise<void>;
}

export declare class MemoryQueue implements Queue {
  load(): Promise<Ping[]>;
  write(put: Ping[], remove: number[]): Promise<void>;
  close(): Promise<void>;
}

export declare class IndexedDbQueue implements Queue {
  constructor(name?: string);
  load(): Promise<Ping[]>;
  write(put: Ping[], remove: number[]): Promise<void>;
  close(): Promise<void>;
}

export interface VendorOptions extends LinkOptions {
  /** Which of the user's vendors; may be left out where there is one. */
  vendorId?: string;
  /** IndexedDB in a browser, one for each `vendorId`; else memory. */
  queue?: Queue;
  /** Most pings kept (100,000); then the oldest are dropped, and `onDropped` told. */
  maxQueue?: number;
  onHello?: (hello: { vendorId: string; time: number; durable: number | null; maxBatch: number }) => void;
  /** These are in PostgreSQL. */
  onStored?: (pings: Ping[]) => void;
  /** This one never will be. */
  onRejected?: (ping: Ping, reject: { seq: number; code: string; message: string }) => void;
  onDropped?: (pings: Ping[]) => void;
  /** How many wait has changed. */
  onQueue?: (size: number) => void;
}

export declare class VendorClient {
  constructor(url: string | URL, options?: VendorOptions);
  readonly state: State;
  readonly size: number;
  readonly stored: number;
  readonly rejected: number;
  readonly dropped: number;
  readonly vendorId: string | null;
  readonly clockOffset: number | null;
  start(): Promise<this>;
  stop(): Promise<void>;
  retry(): void;
  ping(fix: Position & Partial<Ping>): Promise<number>;
  setOpen(open: boolean): void;
  flushed(): Promise<void>;
}

export declare function comeBack(code: number): "yes" | "later" | "token" | "no";
export declare function backoff(failures: number, base: number, most: number, chance: number): number;
export declare function expiry(token: string): number | null;
