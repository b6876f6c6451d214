import type { Area } from "./venta.js";

export type AlertEvent = "entered" | "left" | "opened" | "closed" | "online" | "offline";

/** An alert to create, for an area or a list of vendors. Times are epoch milliseconds. */
export type NewAlert = ({ area: Area; vendors?: undefined } | { vendors: string[]; area?: undefined }) & {
  /** Only open vendors. */
  open?: boolean;
  on: AlertEvent[];
  /** https://, on the public internet. */
  url: string;
  /** Minimum time between two webhooks of the same vendor and event, ms (600,000). */
  quiet?: number;
  expires?: number | string;
  /** Included in each webhook. */
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
  /** When it was first evaluated; later events are sent. */
  startedAt?: number;
  /** No webhook has been delivered since then. */
  failingSince?: number;
  /** Since when no events are sent, and why. */
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

/** The alerts of one user; methods reject with a `VentaError` if the server refuses. */
export declare class Alerts {
  constructor(url: string | URL, options?: { getToken?: (asked: { refresh: boolean }) => string | null | Promise<string | null> });
  /** Creates an alert; only this answer has its `secret`. A repeated `key` returns the first alert. */
  create(alert: NewAlert, options?: { key?: string }): Promise<Alert & { secret: string }>;
  get(id: string): Promise<Alert>;
  /** Changes the given members; null removes one. */
  update(id: string, changes: AlertChanges): Promise<Alert>;
  delete(id: string): Promise<void>;
  /** Sends a test webhook; resolves with its `id`. */
  test(id: string): Promise<{ id: string }>;
  /** Yields all alerts, oldest first. */
  list(): AsyncGenerator<Alert>;
  /** Yields the webhooks of an alert and their attempts, newest first. */
  deliveries(id: string): AsyncGenerator<Delivery>;
}
