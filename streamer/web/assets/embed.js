/**
 * `<venta-map>`: the live map of a Venta server, embedded in another site.
 *
 *     <script type="module" src="https://streamer.example/embed.js"></script>
 *     <venta-map lat="52.2297" long="21.0122" zoom="14"></venta-map>
 *
 * Attributes: lat, long, zoom, vendor (a vendorId), circle (lat,long,radius), open, query, theme (light or dark), lang,
 * token, server. Each may change at any time. Selecting a vendor fires `vendor` with `detail.vendorId`.
 */

const NAMES = ["lat", "long", "zoom", "vendor", "circle", "open", "query", "theme", "lang", "token", "server"];

class VentaMap extends HTMLElement {
  static observedAttributes = NAMES;

  connectedCallback() {
    if (this.frame) return;
    const root = this.attachShadow({ mode: "open" });
    root.innerHTML = "<style>:host{display:block;height:400px}iframe{width:100%;height:100%;border:0}</style>";
    this.frame = document.createElement("iframe");
    this.frame.title = this.getAttribute("title") ?? "Venta live map";
    this.frame.allow = "geolocation; clipboard-write; web-share";
    this.frame.src = this.address();
    root.append(this.frame);
    this.heard = ({ source, data }) => {
      if (source !== this.frame.contentWindow || data?.type !== "venta-vendor") return;
      this.dispatchEvent(new CustomEvent("vendor", { detail: { vendorId: data.vendorId } }));
    };
    addEventListener("message", this.heard);
  }

  disconnectedCallback() {
    removeEventListener("message", this.heard);
  }

  attributeChangedCallback() {
    // unless `lang` or `server` changes, only the fragment differs, and the map updates without reloading
    if (this.frame) this.frame.src = this.address();
  }

  address() {
    const [lat, long, zoom, vendor, circle, open, query, theme, lang, token, server] = NAMES.map((name) => this.getAttribute(name));
    const parts = lat !== null && long !== null ? [`${zoom ?? 14}/${Number(lat)}/${Number(long)}`] : [];
    const given = { vendor, circle, open: open === null ? null : "1", q: query, theme, token };
    for (const [name, value] of Object.entries(given)) if (value !== null) parts.push(`${name}=${encodeURIComponent(value)}`);
    const url = new URL("/embed", server ?? import.meta.url);
    if (lang !== null) url.searchParams.set("lang", lang);
    url.hash = parts.join("&");
    return url.href;
  }
}

customElements.define("venta-map", VentaMap);
