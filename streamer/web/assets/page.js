/** Shared code of both pages: settings and texts, theme, storage, the server's clock, formatting. */

export const settings = JSON.parse(document.getElementById("settings").textContent);
const { lang, strings } = settings;

// texts

const plural = new Intl.PluralRules(lang);

/** Returns a text in the page's language with `{name}` filled in; plural forms are chosen by `values.n`. */
export function text(key, values = {}) {
  const found = strings[key];
  const form = typeof found === "string" ? found : (found[plural.select(values.n)] ?? found.other);
  const shown = (value) => (typeof value === "number" ? number(value) : value);
  return form.replace(/\{(\w+)\}/g, (_, name) => shown(values[name]));
}

export function number(value, options) {
  return value.toLocaleString(lang, options);
}

export function count(n, key) {
  return text(key, { n });
}

export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return text("span.s", { n: s });
  return s < 3600 ? text("span.min", { n: Math.floor(s / 60) }) : text("span.h", { n: Math.floor(s / 3600) });
}

export function ago(ms) {
  return ms < 1_500 ? text("age.now") : text("age.ago", { span: span(ms) });
}

export function millis(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  return `${number(ms / 1000, { maximumFractionDigits: ms < 10_000 ? 1 : 0 })} s`;
}

/** Whether the locale uses miles. */
export const miles = /-(US|GB|LR|MM)\b/i.test(navigator.language);

const unit = (value, name, digits = 0) => number(value, { style: "unit", unit: name, maximumFractionDigits: digits });

export function metres(m) {
  if (miles) {
    const far = m / 1609.344;
    return far < 0.2 ? unit(Math.round(m / 0.3048 / 10) * 10, "foot") : unit(far, "mile", far < 10 ? 1 : 0);
  }
  return m < 1000 ? unit(Math.round(m / 10) * 10, "meter") : unit(m / 1000, "kilometer", m < 10_000 ? 1 : 0);
}

export function speed(metresPerSecond) {
  return miles ? unit(metresPerSecond * 2.23694, "mile-per-hour") : unit(metresPerSecond * 3.6, "kilometer-per-hour");
}

export function wind(heading) {
  return strings.winds[Math.round(heading / 45) % 8];
}

// theme

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Applies the chosen theme, or the system's; calls `changed` when it changes. */
export function theme(changed = () => {}, forced = null) {
  const apply = () => {
    const chosen = forced ?? remembered("theme");
    document.documentElement.dataset.theme = ["light", "dark"].includes(chosen) ? chosen : dark.matches ? "dark" : "light";
    changed();
  };
  dark.addEventListener("change", apply);
  apply();
  return {
    toggle() {
      const wanted = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      forced = null;
      // the system's theme is not stored, as it may change with the time of day
      remember("theme", (wanted === "dark") === dark.matches ? null : wanted);
      apply();
      return wanted;
    },
  };
}

// storage; the page works without it, and an embedded map does not change the visitor's settings

export function remembered(name) {
  try {
    return settings.embed ? null : localStorage.getItem(`venta-${name}`);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  if (settings.embed) return;
  try {
    if (value === null) localStorage.removeItem(`venta-${name}`);
    else localStorage.setItem(`venta-${name}`, value);
  } catch {
    // private windows may refuse storage
  }
}

/** Returns the token of the URL's fragment (`#token=…`), which browsers don't send, or the stored one. */
export function token(name, hash = location.hash) {
  const parameters = hash.slice(1).split("&");
  const given = new URLSearchParams(parameters.find((one) => one.startsWith("token="))).get("token");
  if (given) {
    remember(name, given);
    const rest = parameters.filter((one) => !one.startsWith("token="));
    history.replaceState(null, "", location.pathname + location.search + (rest.length > 0 ? `#${rest.join("&")}` : ""));
  }
  return given ?? remembered(name);
}

// time

/** The server's clock minus this device's, ms; 0 until known. */
export const clock = {
  offset: 0,
  now: () => Date.now() + clock.offset,
  /** Measures the offset; the fastest of three answers is the most exact. */
  async ask() {
    let best = Infinity;
    for (let tries = 0; tries < 3; tries += 1) {
      try {
        const url = new URL(`/map/now?${Math.random()}`, location.href).href;
        const { time } = await (await fetch(url, { cache: "no-store" })).json();
        // by the browser's network timing, as a busy page reads answers late
        const { requestStart, responseStart } = performance.getEntriesByName(url)[0];
        const took = responseStart - requestStart;
        if (took >= best) continue;
        best = took;
        const off = time - (performance.timeOrigin + requestStart + took / 2);
        // a difference within the round-trip time counts as none
        clock.offset = Math.abs(off) <= took / 2 + 1 ? 0 : off;
      } catch {
        return;
      }
    }
  },
};

// the document

/** Makes an element with properties (attributes where the name has a dash) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const by = (id) => document.getElementById(id);

/** Sets a property only if it changes, so that focus stays and screen readers don't repeat it. */
export function set(node, property, value) {
  if (node[property] !== value) node[property] = value;
}

export function put(id, value) {
  set(by(id), "textContent", value);
}
