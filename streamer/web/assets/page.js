/** What both pages share: their settings, light and dark, the token, the server's clock, the words for numbers. */

export const settings = JSON.parse(document.getElementById("settings").textContent);

// light and dark

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Put the theme that was chosen, or the system's, into force; `changed` is called whenever it is another. */
export function theme(changed = () => {}) {
  const apply = () => {
    document.documentElement.dataset.theme = remembered("theme") ?? (dark.matches ? "dark" : "light");
    changed();
  };
  dark.addEventListener("change", apply);
  apply();
  return {
    toggle() {
      const wanted = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      // what the system says anyway need not be remembered: it may change with the hour
      remember("theme", (wanted === "dark") === dark.matches ? null : wanted);
      apply();
      return wanted;
    },
  };
}

// what a browser keeps for us; one that keeps nothing loses nothing but comfort

export function remembered(name) {
  try {
    return localStorage.getItem(`venta-${name}`);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(`venta-${name}`);
    else localStorage.setItem(`venta-${name}`, value);
  } catch {
    // private windows may refuse
  }
}

/** A token from the part of the address that never leaves the browser (`#token=…`), taken out of it, else the kept one. */
export function token(name) {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    remember(name, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given ?? remembered(name);
}

// time

/** The server's clock less this device's, ms; 0 until it was asked. */
export const clock = {
  offset: 0,
  now: () => Date.now() + clock.offset,
  /** Ask the server; the quickest of three answers is the nearest to the truth. */
  async ask() {
    let best = Infinity;
    for (let tries = 0; tries < 3; tries += 1) {
      try {
        const url = new URL(`/map/now?${Math.random()}`, location.href).href;
        const { time } = await (await fetch(url, { cache: "no-store" })).json();
        // as the browser's network saw it: a busy page reads late what came in time
        const { requestStart, responseStart } = performance.getEntriesByName(url)[0];
        const took = responseStart - requestStart;
        if (took >= best) continue;
        best = took;
        const off = time - (performance.timeOrigin + requestStart + took / 2);
        // within what the way may have taken it is no difference
        clock.offset = Math.abs(off) <= took / 2 + 1 ? 0 : off;
      } catch {
        return;
      }
    }
  },
};

// words

export function ago(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 2) return "now";
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  return `${Math.floor(s / 3600)} h ago`;
}

export function metres(m) {
  if (m < 1000) return `${Math.round(m / 10) * 10} m`;
  return m < 10_000 ? `${(m / 1000).toFixed(1)} km` : `${Math.round(m / 1000)} km`;
}

export function millis(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}

const WINDS = ["north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west"];

export function wind(heading) {
  return WINDS[Math.round(heading / 45) % 8];
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** An element with properties, attributes where the name has a dash, and children. */
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
