import type { Card } from "./venta.js";

/** A verified webhook. */
export interface Webhook {
  /** The same for every attempt; use it to ignore duplicates. */
  id: string;
  /** `vendor.entered`, `vendor.left`, `vendor.opened`, … or `alert.test`. */
  type: string;
  alertId: string;
  /** The time of the event, epoch milliseconds. */
  at: number;
  /** The vendor's card; null for a test. */
  vendor: Card | null;
  /** The alert's metadata. */
  metadata: Record<string, unknown>;
}

/** The request is not a webhook signed with this secret, or is too old; answer it with 400. */
export class WebhookRefused extends Error {}

/** Verifies a request and resolves with its webhook; rejects with WebhookRefused. */
export function verifyWebhook(
  secret: string | string[],
  headers: Headers | Record<string, string | string[] | undefined>,
  body: string | ArrayBuffer | Uint8Array,
  options?: { tolerance?: number; now?: number },
): Promise<Webhook>;
