/** The list of vendors, the card of the chosen one, the watched area: what the map shows, in words. */

import { distance } from "./fleet.js";
import { ago, by, clock, count, element, metres, wind } from "./page.js";

/** More than this many nobody reads; the search finds the others. */
const MOST_LISTED = 60;
const LOGGED = 4;

function state(card) {
  return card.online ? (card.open ? "open" : "closed") : "offline";
}

function pace(speed) {
  if (speed === undefined) return "–";
  return speed < 0.3 ? "parked" : `${Math.round(speed * 3.6)} km/h`;
}

export class Panel {
  /** handlers: onChoose(vendorId or null), onFollow(), onFilter() */
  constructor(handlers) {
    this.handlers = handlers;
    this.root = by("panel");
    this.list = by("list");
    this.rows = new Map();
    this.cardOf = null;
    this.parts = null;
    this.log = [];
    by("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.list.querySelector("button")?.click();
    });
    for (const input of [by("query"), by("only-open")]) input.addEventListener("input", () => handlers.onFilter());
    by("handle").addEventListener("click", () => this.lift(!this.root.classList.contains("up")));
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("button");
      if (row !== null) handlers.onChoose(row.dataset.vendor, true);
    });
    this.list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const rows = [...this.list.querySelectorAll("button")];
      rows[rows.indexOf(document.activeElement) + step]?.focus();
    });
  }

  get onlyOpen() {
    return by("only-open").checked;
  }

  /** On a phone the panel is a sheet: up, or only its edge. */
  lift(up) {
    this.root.classList.toggle("up", up);
    by("handle").setAttribute("aria-expanded", String(up));
  }

  /** List cards, the nearest to `center` ([lat, long]) first; gives the ids in that order. */
  show(cards, center, chosen, clipped) {
    const query = by("query").value.trim().toLocaleLowerCase();
    const found = query === "" ? cards : cards.filter((card) => card.name.toLocaleLowerCase().includes(query));
    const near = found
      .map((card) => [distance(...center, card.lat, card.long), card])
      .sort((a, b) => a[0] - b[0])
      .slice(0, MOST_LISTED);
    by("handle-text").textContent = count(cards.length, "vendor");
    const rows = near.map(([far, card]) => this.row(card, far, card.vendorId === chosen));
    if (rows.length === 0) {
      rows.push(element("li", { className: "none", textContent: query ? "No vendor of this name in view." : `No vendors in view. Move the map, or zoom ${clipped ? "in" : "out"}.` }));
    }
    // rows that stay where they are keep their focus and are not read out again
    rows.forEach((row, at) => {
      if (this.list.children[at] !== row) this.list.insertBefore(row, this.list.children[at] ?? null);
    });
    while (this.list.children.length > rows.length) this.list.lastElementChild.remove();
    const kept = new Set(near.map(([, card]) => card.vendorId));
    for (const vendorId of this.rows.keys()) if (!kept.has(vendorId)) this.rows.delete(vendorId);
    return near.map(([, card]) => card.vendorId);
  }

  row(card, far, chosen) {
    let row = this.rows.get(card.vendorId);
    if (row === undefined) {
      const sign = element("i", { className: "sign", "aria-hidden": "true" });
      const name = element("span", { className: "name" });
      const what = element("span", { className: "what" });
      const away = element("span", { className: "far" });
      const button = element("button", { type: "button", "data-vendor": card.vendorId }, sign, element("span", {}, name, what), away);
      row = element("li", {}, button);
      Object.assign(row, { sign, name, what, away, button });
      this.rows.set(card.vendorId, row);
    }
    const kind = state(card);
    set(row.sign, "className", `sign ${kind}`);
    set(row.name, "textContent", card.name);
    const doing = card.online ? `${card.open ? "open" : "closed"}${card.speed >= 0.3 ? ` · ${pace(card.speed)}` : ""}` : "offline";
    set(row.what, "textContent", doing);
    set(row.away, "textContent", metres(far));
    if (chosen) row.button.setAttribute("aria-current", "true");
    else row.button.removeAttribute("aria-current");
    return row;
  }

  /** The card of a vendor; null closes it. */
  choose(card) {
    const root = by("card");
    root.hidden = card === null;
    this.root.classList.toggle("chosen", card !== null);
    this.cardOf = card?.vendorId ?? null;
    if (card === null) {
      root.replaceChildren();
      this.parts = null;
      return;
    }
    const name = element("h2", { id: "card-name" });
    const tags = element("p", { className: "tags" });
    const close = element("button", { type: "button", className: "close", textContent: "×", "aria-label": "Close the card" });
    close.addEventListener("click", () => this.handlers.onChoose(null));
    const top = element("div", { className: "top" }, element("div", { className: "who" }, name, tags), close);
    const picture = image(card.primaryImage);
    if (picture !== null) top.prepend(picture);
    const facts = { seen: element("dd"), pace: element("dd"), heads: element("dd") };
    const list = element(
      "dl",
      { className: "facts" },
      element("div", {}, element("dt", { textContent: "last fix" }), facts.seen),
      element("div", {}, element("dt", { textContent: "speed" }), facts.pace),
      element("div", {}, element("dt", { textContent: "heading" }), facts.heads),
    );
    const follow = element("button", { type: "button", className: "primary", id: "follow", "aria-pressed": "false", "aria-keyshortcuts": "f" });
    follow.addEventListener("click", () => this.handlers.onFollow());
    const trail = element("p", { className: "trail", id: "trail" });
    root.replaceChildren(top, list, element("div", { className: "acts" }, follow), trail);
    this.parts = { name, tags, facts, follow, trail, kind: null };
    this.refresh(card, false);
  }

  /** What is new of the chosen vendor. */
  refresh(card, following, trail = "") {
    const { parts } = this;
    if (parts === null) return;
    set(parts.name, "textContent", card.name);
    const kind = `${card.open}${card.online}`;
    if (parts.kind !== kind) {
      parts.kind = kind;
      parts.tags.replaceChildren(
        element("span", { className: card.open ? "tag open" : "tag", textContent: card.open ? "open" : "closed" }),
        element("span", { className: card.online ? "tag" : "tag offline", textContent: card.online ? "online" : "offline" }),
      );
    }
    set(parts.facts.seen, "textContent", ago(clock.now() - card.timestamp));
    set(parts.facts.pace, "textContent", pace(card.speed));
    set(parts.facts.heads, "textContent", card.heading === undefined ? "–" : wind(card.heading));
    set(parts.follow, "textContent", following ? "Following" : "Follow");
    parts.follow.setAttribute("aria-pressed", String(following));
    set(parts.trail, "textContent", trail);
  }

  /** The watched area in words; null where there is none. */
  area(area, cards, fresh) {
    by("area").hidden = area === null;
    if (area === null) {
      this.log = [];
      by("area-log").replaceChildren();
      return "";
    }
    const size = area.center
      ? `Circle of ${metres(area.radius)}`
      : `Box of ${metres(distance(area.ne.lat, area.sw.long, area.ne.lat, area.ne.long))} by ${metres(distance(area.ne.lat, area.ne.long, area.sw.lat, area.ne.long))}`;
    set(by("area-title"), "textContent", size);
    const open = cards.filter((card) => card.open).length;
    const text = fresh ? `${count(cards.length, "vendor")} inside, ${open} open` : "asking…";
    set(by("area-text"), "textContent", text);
    return `${size}: ${text}`;
  }

  /** Somebody came into the watched area, or went. */
  passed(card, how) {
    this.log = [[card.name, how], ...this.log].slice(0, LOGGED);
    by("area-log").replaceChildren(
      ...this.log.map(([name, did]) => element("li", {}, element("b", { textContent: name }), ` ${did}`)),
    );
  }
}

function set(node, property, value) {
  if (node[property] !== value) node[property] = value;
}

function image(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return null;
  }
  if (url === null || parsed.protocol !== "https:") return null;
  const made = element("img", { alt: "", loading: "lazy", referrerPolicy: "no-referrer", src: parsed.href });
  made.addEventListener("error", () => made.remove());
  return made;
}
