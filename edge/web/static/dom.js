// Small helpers for the document and for figures in words.

export const $ = (id) => document.getElementById(id);

/** Set text only where it changed, so that nothing is laid out or announced twice. */
export function put(id, text) {
  const node = $(id);
  if (node.textContent !== text) node.textContent = text;
}

export function el(tag, cls, ...kids) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  node.append(...kids);
  return node;
}

/** A new icon; the names are those of icons.svg. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "ic");
  const use = document.createElementNS(svg.namespaceURI, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Change the icon that `node` is or holds. */
export function setIcon(node, name) {
  const use = node.querySelector("use");
  if (use.getAttribute("href") !== `#i-${name}`) use.setAttribute("href", `#i-${name}`);
}

/** Speak a change of state (polite) or a fault (at once) to a screen reader. */
export const tell = (text) => put("told", text);
export const alarm = (text) => put("alarm", text);

// A figure that nobody has measured is null; a live one then reads "–".
export const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
export const grouped = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f");
export const lengthUm = (um) => (um < 1 ? `${+(um * 1000).toPrecision(3)} nm` : `${+um.toPrecision(3)} µm`);
export const clockTime = (date) => date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

export const roughly = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);

export function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
