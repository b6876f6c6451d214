import type { Area } from "./venta.js";

export type AlertEvent = "entered" | "left" | "opened" | "closed" | "online" | "offline";

/** What to tell, and where: an area or a list of vendors. Times are epoch milliseconds. */
export type NewAlert = ({ area: Area; vendors?: undefined } | { vendors: string[]; area?: undefined }) & {
  /** Only vendors that are open. */
  open?: boolean;
  on: AlertEvent[];
  /** https://, on the public internet. */
  url: string;
  /** The same vendor and event is not told again for so many ms (600,000). */
  quiet?: number;
  expires?: number | string;
  /** Comes with each webhook. */
  metadata?: Record<string, unknown>;
  disabled?: boolean;
};

export interface Alert {
  id: string;
  area?: Area;
  vendors?: string[];
  open?: boolean;
  on: AlertEvent[];
  url: string;
  quiet: number;
  expires?: number;
  metadata?: Record<string, unknown>;
  createdAt: number;
  updatedAt: number;
  /** Its area or vendors were first looked at: events are told from here on. */
  startedAt?: number;
  /** No webhook was delivered since. */
  failingSince?: number;
  /** No events are sent. */
  disabled?: { at: number; reason: string };
}

export type AlertChanges = {
  area?: Area | null;
  vendors?: string[] | null;
  open?: boolean | null;
  on?: AlertEvent[];
  url?: string;
  quiet?: number | null;
  expires?: number | string | null;
  metadata?: Record<string, unknown> | null;
  disabled?: boolean;
};

export interface Delivery {
  id: string;
  type: string;
  at: number;
  state: "waiting" | "delivered" | "given up";
  attempts: { at: number; ms: number; status?: number; error?: string }[];
  vendorId?: string;
  nextAttempt?: number;
}

/** The alerts of one user; what the server refuses rejects with a `VentaError`. */
export declare class Alerts {
  constructor(url: string | URL, options?: { getToken?: (asked: { refresh: boolean }) => string | null | Promise<string | null> });
  /** The answer alone has the `secret` that signs the webhooks. The same `key` again creates no other alert. */
  create(alert: NewAlert, options?: { key?: string }): Promise<Alert & { secret: string }>;
  get(id: string): Promise<Alert>;
  /** Changes the members that are given; null removes one. */
  update(id: string, changes: AlertChanges): Promise<Alert>;
  delete(id: string): Promise<void>;
  /** Sends a webhook that is about no vendor; resolves with its `id`. */
  test(id: string): Promise<{ id: string }>;
  /** All alerts, the oldest first. */
  list(): AsyncGenerator<Alert>;
  /** The webhooks of an alert and the answers to them, the newest first. */
  deliveries(id: string): AsyncGenerator<Delivery>;
}
