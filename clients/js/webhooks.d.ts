import type { Card } from "./venta.js";

/** A verified webhook. */
export interface Webhook {
  /** The same each time it is sent: one that was seen before is a repetition. */
  id: string;
  /** `vendor.entered`, `vendor.left`, `vendor.opened`, … or `alert.test`. */
  type: string;
  alertId: string;
  /** When it happened, epoch milliseconds. */
  at: number;
  /** The vendor's card; null for a test. */
  vendor: Card | null;
  /** What the alert was created with. */
  metadata: Record<string, unknown>;
}

/** A request that is not a webhook which the server signed with this secret, or an old one: answer 400. */
export class WebhookRefused extends Error {}

/** Returns the webhook of a request, verified; rejects with WebhookRefused. */
export function verifyWebhook(
  secret: string | string[],
  headers: Headers | Record<string, string | string[] | undefined>,
  body: string | ArrayBuffer | Uint8Array,
  options?: { tolerance?: number; now?: number },
): Promise<Webhook>;
