/** Alerts: webhooks for those who are not connected. For backends, and for apps whose user has a backend. */

import { VentaError } from "./venta.js";

/** The alerts of one user. */
export class Alerts {
  /** @param url the server; @param options `getToken`, as the clients have it */
  constructor(url, { getToken } = {}) {
    this.url = `${String(url).replace(/\/+$/, "")}/v1/alerts`;
    this.getToken = getToken ?? (() => null);
  }

  /** Creates an alert; the answer alone has the `secret` that signs its webhooks. The same `key` again creates no other. */
  async create(alert, { key } = {}) {
    return this.request("POST", "", alert, key === undefined ? {} : { "Idempotency-Key": key });
  }

  async get(id) {
    return this.request("GET", id);
  }

  /** Changes the members that are given; null removes one. */
  async update(id, changes) {
    return this.request("PATCH", id, changes);
  }

  async delete(id) {
    await this.request("DELETE", id);
  }

  /** Sends a webhook that is about no vendor; resolves with its `id`. */
  async test(id) {
    return this.request("POST", id, undefined, {}, "/test");
  }

  /** All alerts, the oldest first. */
  list() {
    return this.pages("alerts", "");
  }

  /** The webhooks of an alert and the answers to them, the newest first. */
  deliveries(id) {
    return this.pages("deliveries", id, "/deliveries");
  }

  async *pages(name, id, path = "") {
    let cursor = null;
    do {
      const page = await this.request("GET", id, undefined, {}, `${path}?limit=100${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`);
      yield* page[name];
      cursor = page.next;
    } while (cursor !== null);
  }

  async request(method, id, body, headers = {}, path = "") {
    const token = await this.getToken({ refresh: false });
    const answer = await fetch(`${this.url}${id && `/${encodeURIComponent(id)}`}${path}`, {
      method,
      headers: { ...headers, "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (!answer.ok) {
      // the server's problem document, or what a proxy before it says
      const { code = String(answer.status), detail = answer.statusText } = await answer.json().catch(() => ({}));
      throw new VentaError(code, detail);
    }
    return answer.status === 204 ? null : answer.json();
  }
}
