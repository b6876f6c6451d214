/** Alerts: webhooks for users who are not connected. For backends, and for apps whose user has a backend. */

import { VentaError } from "./venta.js";

/** The alerts of one user. */
export class Alerts {
  /** @param url the server; @param options `getToken`, as in the clients' options */
  constructor(url, { getToken } = {}) {
    this.url = `${String(url).replace(/\/+$/, "")}/v1/alerts`;
    this.getToken = getToken ?? (() => null);
  }

  /** Creates an alert; only this answer has its `secret`. A repeated `key` returns the first alert. */
  async create(alert, { key } = {}) {
    return this.request("POST", "", alert, key === undefined ? {} : { "Idempotency-Key": key });
  }

  async get(id) {
    return this.request("GET", id);
  }

  /** Changes the given members; null removes one. */
  async update(id, changes) {
    return this.request("PATCH", id, changes);
  }

  async delete(id) {
    await this.request("DELETE", id);
  }

  /** Sends a test webhook; resolves with its `id`. */
  async test(id) {
    return this.request("POST", id, undefined, {}, "/test");
  }

  /** Yields all alerts, oldest first. */
  list() {
    return this.pages("alerts", "");
  }

  /** Yields the webhooks of an alert and their attempts, newest first. */
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
      // the server's problem document, or the answer of a proxy
      const { code = String(answer.status), detail = answer.statusText } = await answer.json().catch(() => ({}));
      throw new VentaError(code, detail);
    }
    return answer.status === 204 ? null : answer.json();
  }
}
