/**
 * Verifies and parses the webhooks of alerts. For Node, Deno, Bun and workers; it needs only Web Crypto.
 */

const TOLERANCE = 300;
const PREFIX = "whsec_";

/** The request is not a webhook signed with this secret, or is too old; answer it with 400. */
export class WebhookRefused extends Error {
  constructor(message) {
    super(message);
    this.name = "WebhookRefused";
  }
}

/**
 * Verifies a request and resolves with its webhook; rejects with WebhookRefused.
 *
 * @param secret the alert's `secret`, or several during a rotation
 * @param headers a Headers object, or a plain object with case-insensitive names
 * @param body the raw bytes or text of the body
 * @param options `tolerance` in seconds, `now` in epoch seconds
 */
export async function verifyWebhook(secret, headers, body, { tolerance = TOLERANCE, now = Date.now() / 1000 } = {}) {
  const header = reader(headers);
  const id = header("webhook-id");
  const timestamp = header("webhook-timestamp");
  const offered = header("webhook-signature").split(" ");
  if (!/^-?\d+$/.test(timestamp)) throw new WebhookRefused(`webhook-timestamp is no number: ${timestamp.slice(0, 40)}`);
  if (Math.abs(now - Number(timestamp)) > tolerance) {
    throw new WebhookRefused(`webhook-timestamp ${timestamp} is more than ${tolerance} s from this machine's clock`);
  }
  const bytes = typeof body === "string" ? new TextEncoder().encode(body) : new Uint8Array(body);
  const head = new TextEncoder().encode(`${id}.${timestamp}.`);
  const signed = new Uint8Array(head.length + bytes.length);
  signed.set(head);
  signed.set(bytes, head.length);
  let right = false;
  for (const each of [secret].flat()) {
    const key = await crypto.subtle.importKey("raw", decode(each.replace(PREFIX, "")), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
    for (const one of offered) {
      if (!one.startsWith("v1,")) continue;
      const mac = decode(one.slice(3));
      if (mac !== null && (await crypto.subtle.verify("HMAC", key, mac, signed))) right = true;
    }
  }
  if (!right) throw new WebhookRefused("the signature is wrong: the secret is another alert's, or the body was changed");
  let event;
  try {
    event = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    event = null;
  }
  if (typeof event?.type !== "string" || typeof event.alertId !== "string" || typeof event.at !== "number") {
    throw new WebhookRefused("the body is not the webhook of an alert");
  }
  return { id, type: event.type, alertId: event.alertId, at: event.at, vendor: event.vendor ?? null, metadata: event.metadata ?? {} };
}

function reader(headers) {
  const get =
    typeof headers.get === "function"
      ? (name) => headers.get(name)
      : (name) => Object.entries(headers).find(([key]) => key.toLowerCase() === name)?.[1];
  return (name) => {
    const value = get(name);
    if (value === null || value === undefined) throw new WebhookRefused(`the header ${name} is missing`);
    return String(value);
  };
}

function decode(text) {
  try {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  } catch {
    return null;
  }
}
