/** The panel: the list of vendors, the card of the selected one, and the watched area. */

import { distance } from "./fleet.js";
import { directions } from "./here.js";
import { ago, by, clock, count, element, metres, put, set, speed, text, wind } from "./page.js";

/** Maximum number of rows; the search finds the others. */
const MOST_LISTED = 60;
const LOGGED = 4;

function state(card) {
  return card.online ? (card.open ? "open" : "closed") : "offline";
}

function pace(metresPerSecond) {
  if (metresPerSecond === undefined) return "–";
  return metresPerSecond < 0.3 ? text("state.parked") : speed(metresPerSecond);
}

export class Panel {
  /** handlers: onChoose(vendorId or null), onGroup(bubble), onFollow(), onShare(), onReplay(), onFilter(), onMore() */
  constructor(handlers) {
    this.handlers = handlers;
    this.root = by("panel");
    this.list = by("list");
    this.rows = new Map();
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
      if (row === null) return;
      if (row.dataset.vendor) handlers.onChoose(row.dataset.vendor, true);
      else if (row.dataset.group) handlers.onGroup(this.groups[Number(row.dataset.group)]);
      else handlers.onMore();
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

  set onlyOpen(value) {
    by("only-open").checked = value;
  }

  get query() {
    return by("query").value.trim();
  }

  set query(value) {
    by("query").value = value;
  }

  /** On a phone the panel is a sheet: open, or only its edge visible. */
  lift(up) {
    this.root.classList.toggle("up", up);
    by("handle").setAttribute("aria-expanded", String(up));
  }

  /** Lists cards, nearest to `from` ([lat, long]) first; returns the ids in that order. */
  show(cards, from, chosen) {
    const near = cards
      .map((card) => [card.lat === undefined ? Infinity : distance(...from, card.lat, card.long), card])
      .sort((a, b) => a[0] - b[0] || a[1].name.localeCompare(b[1].name))
      .slice(0, MOST_LISTED);
    this.fill(near.map(([far, card]) => this.row(card, far, card.vendorId === chosen)));
    const kept = new Set(near.map(([, card]) => card.vendorId));
    for (const vendorId of this.rows.keys()) if (!kept.has(vendorId)) this.rows.delete(vendorId);
    return near.map(([, card]) => card.vendorId);
  }

  /** Lists bubbles, largest first. */
  showGroups(bubbles, from, place) {
    this.groups = [...bubbles].sort((a, b) => b.count - a.count).slice(0, MOST_LISTED);
    this.fill(
      this.groups.map((bubble, at) => {
        const sign = element("i", { className: "sign group", "aria-hidden": "true" });
        const name = element("span", { className: "name", textContent: text("group.label", { vendors: count(bubble.count, "vendors"), open: bubble.open }) });
        const away = element("span", { className: "far", textContent: metres(distance(...from, ...place(bubble))) });
        return element("li", {}, element("button", { type: "button", "data-group": String(at) }, sign, element("span", {}, name), away));
      }),
    );
  }

  /** Shows in the list why it is empty, or a button for more. */
  note(words, more = false) {
    const inner = more ? element("button", { type: "button", className: "more", textContent: words }) : words;
    this.list.append(element("li", { className: "none" }, inner));
  }

  fill(rows) {
    // rows that stay keep their focus and are not repeated by screen readers
    rows.forEach((row, at) => {
      if (this.list.children[at] !== row) this.list.insertBefore(row, this.list.children[at] ?? null);
    });
    while (this.list.children.length > rows.length) this.list.lastElementChild.remove();
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
    const absent = card.lat === undefined;
    const kind = absent ? "offline" : state(card);
    set(row.sign, "className", `sign ${kind}`);
    set(row.name, "textContent", card.name);
    const words = absent ? text("state.absent") : text(`state.${kind}`);
    set(row.what, "textContent", !absent && card.online && card.speed >= 0.3 ? `${words} · ${pace(card.speed)}` : words);
    set(row.away, "textContent", absent ? "" : metres(far));
    if (chosen) row.button.setAttribute("aria-current", "true");
    else row.button.removeAttribute("aria-current");
    return row;
  }

  /** Opens the card of a vendor; null closes it. A card without a position is of a vendor that is not on the map. */
  choose(card) {
    const root = by("card");
    root.hidden = card === null;
    this.root.classList.toggle("chosen", card !== null);
    this.parts = null;
    if (card === null) return root.replaceChildren();
    const name = element("h2", { id: "card-name", textContent: card.name });
    const tags = element("p", { className: "tags" });
    const close = element("button", { type: "button", className: "close", textContent: "×", "aria-label": text("card.close") });
    close.addEventListener("click", () => this.handlers.onChoose(null));
    const top = element("div", { className: "top" }, element("div", { className: "who" }, name, tags), close);
    const picture = image(card.primaryImage);
    if (picture !== null) top.prepend(picture);
    if (card.lat === undefined) return root.replaceChildren(top, element("p", { className: "trail", textContent: text("card.absent") }));
    const facts = {};
    const fact = (key) => element("div", {}, element("dt", { textContent: text(`card.${key}`) }), (facts[key] = element("dd")));
    const list = element("dl", { className: "facts" }, ...["seen", "speed", "distance"].map(fact));
    const act = (id, className, key, run) => {
      const button = element("button", { type: "button", className, id, textContent: text(key) });
      button.addEventListener("click", run);
      return button;
    };
    const follow = act("follow", "primary", "card.follow", () => this.handlers.onFollow());
    follow.setAttribute("aria-pressed", "false");
    follow.setAttribute("aria-keyshortcuts", "f");
    const way = element("a", { id: "directions", className: "secondary", textContent: text("card.directions"), rel: "noopener", target: "_blank" });
    const acts = element(
      "div",
      { className: "acts" },
      follow,
      way,
      act("share", "secondary", "card.share", () => this.handlers.onShare()),
      act("today", "secondary", "card.today", () => this.handlers.onReplay()),
    );
    const trail = element("p", { className: "trail", id: "trail" });
    root.replaceChildren(top, list, acts, element("div", { id: "replay", className: "replay", hidden: true }), trail);
    this.parts = { name, tags, facts, follow, way, trail, kind: null };
    this.refresh(card, false, null);
  }

  /** Updates the open card; `far` is metres or null. */
  refresh(card, following, far, trail = "") {
    const { parts } = this;
    if (parts === null) return;
    set(parts.name, "textContent", card.name);
    const kind = `${card.open}${card.online}`;
    if (parts.kind !== kind) {
      parts.kind = kind;
      const tag = (word, className) => element("span", { className, textContent: text(`state.${word}`) });
      parts.tags.replaceChildren(
        card.open ? tag("open", "tag open") : tag("closed", "tag"),
        card.online ? tag("online", "tag") : tag("offline", "tag offline"),
      );
    }
    set(parts.facts.seen, "textContent", ago(clock.now() - card.timestamp));
    const heads = card.heading === undefined || !(card.speed >= 0.3) ? "" : ` · ${wind(card.heading)}`;
    set(parts.facts.speed, "textContent", pace(card.speed));
    set(parts.facts.speed, "title", heads);
    set(parts.facts.distance, "textContent", far === null ? "–" : metres(far));
    set(parts.follow, "textContent", text(following ? "card.following" : "card.follow"));
    parts.follow.setAttribute("aria-pressed", String(following));
    set(parts.way, "href", directions(card));
    set(parts.trail, "textContent", trail);
  }

  /** Shows the watched area; null if there is none. */
  area(area, cards, fresh) {
    by("area").hidden = area === null;
    if (area === null) {
      this.log = [];
      by("area-log").replaceChildren();
      return "";
    }
    const size = areaWords(area);
    put("area-title", size);
    const open = cards.filter((card) => card.open).length;
    const inside = fresh ? text("area.inside", { vendors: count(cards.length, "vendors"), open }) : text("area.loading");
    put("area-text", inside);
    return `${size}: ${inside}`;
  }

  /** Logs that a vendor entered or left the watched area. */
  passed(card, key) {
    this.log = [[card.name, text(key)], ...this.log].slice(0, LOGGED);
    by("area-log").replaceChildren(
      ...this.log.map(([name, did]) => element("li", {}, element("b", { textContent: name }), ` ${did}`)),
    );
  }
}

function image(url) {
  if (!URL.canParse(url ?? "") || new URL(url).protocol !== "https:") return null;
  const made = element("img", { alt: "", loading: "lazy", referrerPolicy: "no-referrer", src: url });
  made.addEventListener("error", () => made.remove());
  return made;
}

/** Describes the shape and size of an area. */
export function areaWords(area) {
  if (area.polygon) return text("area.polygon");
  if (area.center) return text("area.circle", { radius: metres(area.radius) });
  const { ne, sw } = area;
  return text("area.box", { width: metres(distance(ne.lat, sw.long, ne.lat, ne.long)), height: metres(distance(ne.lat, ne.long, sw.lat, ne.long)) });
}
