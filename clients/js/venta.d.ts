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
  /** Its app is connected, or was within the last minute. */
  online: boolean;
}

export type Area =
  | { center: Position; radius: number }
  | { ne: Position; sw: Position }
  | { polygon: [long: number, lat: number][] };

/** Vendors near each other, in a watch with `as: "counts"`; `lat` and `long` are their mean position. */
export interface Group extends Position {
  group: string;
  count: number;
  open: number;
  online: number;
}

/** What to watch: an area, its counts, or some vendors. `open`: only open ones. `interval`: minimum ms between updates. */
export type Wanted = (
  | { area: Area; as?: undefined }
  | {
      area: Area;
      as: "counts";
      /** The approximate maximum number of groups, 16 to 1,000 (200). */
      detail?: number;
    }
  | { vendors: string[]; as?: undefined }
) & { open?: boolean; interval?: number };

/**
 * "connecting", "connected", "reconnecting" (waiting for the next attempt), "disconnected" (by `disconnect`, or not
 * connected yet), or "failed": reconnecting would fail the same way. `detail.code` and `detail.reason` are the cause;
 * `connect` tries again.
 */
export type State = "connecting" | "connected" | "reconnecting" | "disconnected" | "failed";

/** The close codes of the protocol; 1006 if the connection ended without one. */
export type CloseCode = 1000 | 1001 | 1002 | 1006 | 1007 | 1009 | 1011 | 1012 | 4400 | 4401 | 4403 | 4404 | 4408 | 4429 | 4508;

export interface StateDetail {
  code?: CloseCode;
  reason?: string;
  retryInMs?: number;
}

/** An error message of the server; the codes are those of the protocol. */
export interface ServerError {
  type: "error";
  code: string;
  message: string;
  id?: string;
  retryAfterMs?: number;
}

/** Why a promise was rejected: `code` is a close code, an `ERR_…` of the protocol, or a proxy's HTTP status as text. */
export declare class VentaError extends Error {
  constructor(code: number | string, reason?: string);
  readonly code: number | string;
  readonly reason: string;
}

interface Listening {
  signal?: AbortSignal;
}

export interface LinkOptions {
  /**
   * Returns the token; called before every connection. `refresh`: the last one was refused, or expires soon. Returning
   * a refused token again ends the connection for good.
   */
  getToken?: (asked: { refresh: boolean }) => string | null | Promise<string | null>;
  /** Disconnects the client when it aborts; then `connect` does nothing. */
  signal?: AbortSignal;
  /** React Native's `AppState`: the client reconnects immediately in the foreground. */
  appState?: { addEventListener(name: "change", listener: (state: any) => void): { remove(): void } };
  /** A WebSocket class other than the runtime's. */
  WebSocket?: unknown;
  /** Maximum first delay before reconnecting, ms (1,000); each failure doubles it. */
  minDelay?: number;
  /** Maximum delay before reconnecting, ms (30,000). The server's hints have precedence. */
  maxDelay?: number;
  /** Maximum wait for a token, and then for a connection, ms (15,000). */
  connectTimeout?: number;
  /** Time without a message after which an answer of the server is requested, ms (30,000). */
  silence?: number;
  /** Maximum wait for this answer, ms (15,000). */
  answerTimeout?: number;
  onState?: (state: State, detail: StateDetail) => void;
  onError?: (error: ServerError) => void;
}

export interface WatchHandlers {
  /** Closes the watch when it aborts. */
  signal?: AbortSignal;
  onEntered?: (card: Card) => void;
  /** The position changed. */
  onMoved?: (card: Card, before: Card) => void;
  /** The name, image, `open` or `online` changed. */
  onChanged?: (card: Card, before: Card) => void;
  onLeft?: (card: Card) => void;
  /** A snapshot made the view exact again. */
  onSnapshot?: (vendors: ReadonlyMap<string, Card>) => void;
  /** A message changed the view. */
  onView?: (vendors: ReadonlyMap<string, Card>) => void;
  /** A message changed the groups of a watch with `as: "counts"`. */
  onCounts?: (groups: ReadonlyMap<string, Group>) => void;
  onError?: (error: ServerError) => void;
}

interface WatchEvents {
  entered: [card: Card];
  moved: [card: Card, before: Card];
  changed: [card: Card, before: Card];
  left: [card: Card];
  snapshot: [vendors: ReadonlyMap<string, Card>];
  view: [vendors: ReadonlyMap<string, Card>];
  counts: [groups: ReadonlyMap<string, Group>];
  error: [error: ServerError];
}

export declare class Watch {
  on<E extends keyof WatchEvents>(name: E, listener: (...values: WatchEvents[E]) => void, options?: Listening): this;
  off<E extends keyof WatchEvents>(name: E, listener: (...values: WatchEvents[E]) => void): this;
  /** Resolves with the vendors, or the groups, once the view is exact; rejects if the watch is refused or closed. */
  ready(): Promise<ReadonlyMap<string, Card> | ReadonlyMap<string, Group>>;
  /** The groups of a watch with `as: "counts"`. */
  readonly groups: ReadonlyMap<string, Group>;
  readonly id: string;
  readonly wanted: Wanted;
  readonly vendors: ReadonlyMap<string, Card>;
  /** False while disconnected, and after a move until the snapshot: `vendors` may be outdated. */
  readonly fresh: boolean;
  move(wanted: Wanted): void;
  close(): void;
}

interface ClientEvents {
  state: [state: State, detail: StateDetail];
  error: [error: ServerError];
}

declare class Client<Events extends ClientEvents> {
  readonly state: State;
  /** When the last message arrived, epoch ms by this device's clock; null if none has. */
  readonly lastMessageAt: number | null;
  on<E extends keyof Events>(name: E, listener: (...values: Extract<Events[E], unknown[]>) => void, options?: Listening): this;
  off<E extends keyof Events>(name: E, listener: (...values: Extract<Events[E], unknown[]>) => void): this;
  /** Resolves when connected; rejects with a VentaError if the connection fails for good or `disconnect` ends it. */
  ready(): Promise<void>;
}

export declare class CustomerClient extends Client<ClientEvents> {
  constructor(url: string | URL, options?: LinkOptions);
  readonly watches: ReadonlyMap<string, Watch>;
  /** Connects and stays connected; ends a wait for the next attempt. */
  connect(): this;
  disconnect(): void;
  watch(wanted: Wanted, handlers?: WatchHandlers, id?: string): Watch;
}

export interface Ping extends Position {
  timestamp: number;
  heading?: number;
  speed?: number;
  accuracy?: number;
}

/** Stores pings until they are acked. `write` resolves when the change is durable, and ignores missing timestamps. */
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
  /** Which of the user's vendors; optional if there is only one. */
  vendorId?: string;
  /** By default IndexedDB in a browser, one per `vendorId`; elsewhere memory, with a warning. */
  queue?: Queue;
  /** Maximum number of queued pings (100,000); beyond it the oldest are dropped. */
  maxQueue?: number;
  onHello?: (hello: { vendorId: string; time: number; durable: number | null; maxBatch: number }) => void;
  /** Pings were stored. */
  onStored?: (pings: Ping[]) => void;
  /** A ping will never be stored. */
  onRejected?: (ping: Ping, reject: { seq: number; code: string; message: string }) => void;
  onDropped?: (pings: Ping[]) => void;
  /** The number of queued pings changed. */
  onQueue?: (size: number) => void;
}

interface VendorEvents extends ClientEvents {
  hello: [hello: { vendorId: string; time: number; durable: number | null; maxBatch: number }];
  stored: [pings: Ping[]];
  rejected: [ping: Ping, reject: { seq: number; code: string; message: string }];
  dropped: [pings: Ping[]];
  queue: [size: number];
}

/** A position from the app; unknown values may be null. `timestamp` is now by default. */
export interface Fixed extends Position {
  timestamp?: number;
  heading?: number | null;
  speed?: number | null;
  accuracy?: number | null;
}

/** A browser's `GeolocationCoordinates`; unknown values are null. */
export interface Coordinates {
  readonly latitude: number;
  readonly longitude: number;
  readonly accuracy?: number | null;
  readonly heading?: number | null;
  readonly speed?: number | null;
}

export declare class VendorClient extends Client<VendorEvents> {
  constructor(url: string | URL, options?: VendorOptions);
  readonly size: number;
  readonly stored: number;
  readonly rejected: number;
  readonly dropped: number;
  readonly vendorId: string | null;
  readonly clockOffset: number | null;
  /** Loads the queue, connects and stays connected; ends a wait for the next attempt. */
  connect(): Promise<this>;
  /** Closes the connection; pings that are not stored stay in the queue. */
  disconnect(): Promise<void>;
  /** Keeps a position until it is stored; resolves with its timestamp once it is in the queue. */
  ping(fix: Fixed | Coordinates | { coords: Coordinates; timestamp?: number }): Promise<number>;
  /** Opens or closes for business; a vendor that closes with `hidden` leaves all maps immediately, until it opens. */
  setOpen(open: boolean, options?: { hidden?: boolean }): void;
  /** Resolves when all pings are stored or rejected; rejects if the connection fails for good before. */
  flushed(): Promise<void>;
  /** Resolves when the ping with this timestamp is stored; rejects if it is rejected or dropped, or the client ends. */
  whenStored(timestamp: number): Promise<void>;
}

/** Exchanges the one-time code of a sign-in link for a token. */
export declare function signIn(
  url: string | URL,
  code: string,
): Promise<{ token: string; vendorId: string; expiresAt: number }>;
export declare function reconnectRule(code: number): "yes" | "later" | "token" | "no";
/** The wait before an attempt, ms, by close code, consecutive failures (from 1) and chance (0 up to 1). */
export declare function reconnectWait(
  code: number,
  failures: number,
  chance: number,
  options?: { minDelay?: number; maxDelay?: number; reconnectAfterMs?: number | null; retryAfterMs?: number },
): number;
export declare function renewIn(token: string, now: number): number | null;
export declare function expiry(token: string): number | null;
