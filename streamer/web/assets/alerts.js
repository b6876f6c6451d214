/** The signed-in user's alerts: webhooks for when this page is closed. Loaded when the dialog is first opened. */

import { areaWords } from "./panel.js";
import { by, count, element, put, remember, remembered, text } from "./page.js";

const EVENTS = ["entered", "left", "opened", "closed"];
const PAGE = 100;

/** A request that the server refused, with its message. */
class Refused extends Error {}

export class Alerts {
  /**
   * @param getToken returns the user's token
   * @param getArea returns the watched area or null
   */
  constructor(getToken, getArea) {
    this.getToken = getToken;
    this.getArea = getArea;
    this.key = null;
    by("alerts-events").replaceChildren(
      ...EVENTS.map((event) =>
        element(
          "label",
          { className: "chip" },
          element("input", { type: "checkbox", name: event, checked: event === "entered" || event === "left" }),
          element("span", { textContent: text(`alerts.on.${event}`) }),
        ),
      ),
    );
    by("alerts-url").value = remembered("alerts-url") ?? "";
    by("alerts-form").addEventListener("input", () => (this.key = null));
    by("alerts-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.create();
    });
  }

  /** Opens the dialog and lists the alerts. */
  async open() {
    const area = this.getArea();
    put("alerts-area", area === null ? text("alerts.no-area") : text("alerts.for", { area: areaWords(area) }));
    by("alerts-create").disabled = area === null;
    put("alerts-said", "");
    if (!by("alerts").open) by("alerts").showModal();
    await this.list();
  }

  async list() {
    try {
      const found = [];
      let cursor = "";
      do {
        const page = await this.ask(`?limit=${PAGE}&cursor=${encodeURIComponent(cursor)}`);
        found.push(...page.alerts);
        cursor = page.next;
      } while (cursor);
      by("alerts-list").replaceChildren(...found.map((alert) => this.item(alert)));
      if (found.length === 0) by("alerts-list").append(element("li", { textContent: text("alerts.none") }));
    } catch (error) {
      put("alerts-said", error.message);
    }
  }

  /** Creates an alert for the watched area; sending the same form again, as after a lost answer, creates no other. */
  async create() {
    const area = this.getArea();
    const on = EVENTS.filter((event) => by("alerts-form").elements[event].checked);
    if (area === null || on.length === 0) return put("alerts-said", text(area === null ? "alerts.no-area" : "alerts.no-event"));
    const url = by("alerts-url").value.trim();
    remember("alerts-url", url);
    this.key ??= `${Date.now()}-${Math.random()}`;
    by("alerts-create").disabled = true;
    try {
      const made = await this.ask("", "POST", { area, on, url }, { "Idempotency-Key": this.key });
      this.key = null;
      await this.list();
      by("alerts-said").replaceChildren(text("alerts.created"), " ", element("code", { textContent: made.secret }));
    } catch (error) {
      put("alerts-said", error.message);
    }
    by("alerts-create").disabled = false;
  }

  async end(id) {
    try {
      await this.ask(`/${id}`, "DELETE");
      put("alerts-said", text("alerts.ended"));
      await this.list();
    } catch (error) {
      put("alerts-said", error.message);
    }
  }

  item(alert) {
    const where = alert.area ? areaWords(alert.area) : count(alert.vendors.length, "vendors");
    const on = alert.on.map((event) => text(`alerts.on.${event}`)).join(", ");
    const end = element("button", { type: "button", className: "secondary", textContent: text("alerts.end") });
    end.setAttribute("aria-label", text("alerts.end.label", { area: where }));
    end.addEventListener("click", () => void this.end(alert.id));
    const state = alert.disabled ? text("alerts.disabled", { why: alert.disabled.reason }) : alert.failingSince ? text("alerts.failing") : "";
    const row = element(
      "li",
      {},
      element("div", {}, element("b", { textContent: where }), element("span", { textContent: on }), element("small", { textContent: new URL(alert.url).host })),
      end,
    );
    row.dataset.alert = alert.id;
    if (state !== "") row.firstChild.append(element("em", { textContent: state }));
    return row;
  }

  async ask(path, method = "GET", body = undefined, headers = {}) {
    const answer = await fetch(`/v1/alerts${path}`, {
      method,
      headers: { ...headers, Authorization: `Bearer ${this.getToken()}` },
      body: body === undefined ? undefined : JSON.stringify(body),
    }).catch(() => null);
    if (answer === null) throw new Refused(text("alerts.failed"));
    if (answer.status === 204) return null;
    const answered = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refused(answered.detail ?? text("alerts.failed"));
    return answered;
  }
}
