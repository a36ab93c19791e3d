"use strict";
// Small helpers that everything else uses. No framework; every string goes into the page as text, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** Make an element: h("p", {class: "x", onclick: f}, "text", child, [children], null). */
function h(tag, attributes, ...children) {
  const svg = ["svg", "path", "rect", "line", "g", "text", "circle", "title", "image"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return node;
}

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

/** A number for people: about three significant digits, thousands separated; an en dash where there is none. */
function show(x) {
  if (!isNumber(x)) return "–";
  const a = Math.abs(x);
  if (a === 0) return "0";
  if (Number.isInteger(x) && a < 1e7) return x.toLocaleString("en-GB").replace("-", "−");
  if (a >= 1e6) return (x / 1e6).toLocaleString("en-GB", { maximumSignificantDigits: 3 }) + " M";
  if (a >= 1000) return Math.round(x).toLocaleString("en-GB");
  if (a < 1e-4) return x.toExponential(1).replace("-", "−");
  return x.toLocaleString("en-GB", { maximumSignificantDigits: 3, minimumSignificantDigits: a < 100 ? 3 : 1 }).replace("-", "−");
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 100) return Math.round(seconds) + " s";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function bytes(n) {
  for (const unit of ["B", "kB", "MB"]) {
    if (n < 1000) return (unit === "B" ? n : n.toFixed(1)) + " " + unit;
    n /= 1000;
  }
  return n.toFixed(1) + " GB";
}

/** `ce_recovered` -> `ce recovered`. */
const words = (name) => String(name).replaceAll("_", " ");

const TOGETHER = "several at once";
/** Family of a site: `resid` for `resid.14`; TOGETHER for a selection of several sites. */
function family(site) {
  if (site === null || site === undefined) return "overall";
  return /^[a-z][a-z0-9_.]*$/.test(site) ? site.replace(/\.\d+$/, "") : TOGETHER;
}
function layer(site) {
  const found = /\.(\d+)$/.exec(site || "");
  return found ? Number(found[1]) : null;
}

function median(values) {
  const v = values.filter(isNumber).sort((a, b) => a - b);
  if (!v.length) return null;
  const m = v.length >> 1;
  return v.length % 2 ? v[m] : (v[m - 1] + v[m]) / 2;
}

/** One colour per condition for the whole report, by order of appearance; other series count on from there. */
const colourOf = (() => {
  const seen = new Map();
  const find = (name) => {
    if (!seen.has(name)) seen.set(name, seen.size % 8);
    return `var(--c${seen.get(name)})`;
  };
  for (const { measurements } of DATA.findings) for (const c of ordered(measurements)) find(c);
  return find;
})();

/** Conditions in the order in which they are read: those that most names have first, so controls come after what is judged. */
function ordered(measurements) {
  const found = new Map();
  for (const m of measurements) {
    const key = m.condition || "";
    if (!found.has(key)) found.set(key, { names: new Set(), count: 0 });
    found.get(key).names.add(m.name);
    found.get(key).count += 1;
  }
  return [...found.keys()].sort((a, b) => found.get(b).names.size - found.get(a).names.size || found.get(b).count - found.get(a).count);
}

/** A small share as people say it: 12 %, 0.35 %, 1 in 15,000. */
function share(x) {
  if (!isNumber(x)) return "–";
  if (x === 0) return "0";
  if (x >= 0.0995) return `${(100 * x).toFixed(0)} %`;
  return x >= 0.001 ? `${(100 * x).toPrecision(2)} %` : `1 in ${Number((1 / x).toPrecision(2)).toLocaleString("en-GB")}`;
}

const unique = (values) => [...new Set(values)];

function tip(text, event) {
  const box = document.getElementById("tip");
  if (text === null) { box.hidden = true; return; }
  box.textContent = text;
  box.hidden = false;
  const wide = box.offsetWidth, high = box.offsetHeight;
  const x = Math.min(event.clientX + 12, window.innerWidth - wide - 8);
  const y = event.clientY + 16 + high > window.innerHeight ? event.clientY - high - 10 : event.clientY + 16;
  box.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
}

/** Something that is built only when it is opened. */
function fold(summary, build, attributes) {
  const box = h("details", attributes, h("summary", null, summary));
  box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(build()); });
  return box;
}
