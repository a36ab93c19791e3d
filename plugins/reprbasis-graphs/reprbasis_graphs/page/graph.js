"use strict";
// Makes the drawings interactive: which view, thresholds, highlights, details. All text enters the page as text nodes.

const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** Make an element: h("p", {class: "x", onclick: f}, "text", child, [children], null). */
function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
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
function show(x) {
  if (!isNumber(x)) return x === null || x === undefined ? "–" : String(x);
  const a = Math.abs(x);
  return (Number.isInteger(x) ? String(x) : a >= 100 ? x.toFixed(0) : a >= 0.01 || a === 0 ? x.toFixed(2) : x.toExponential(1)).replace("-", "−");
}
/** A token as people can see it. */
const token = (t) => String(t).replaceAll("\r", "␍").replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u200b-\u200f\u202a-\u202e\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
const chip = (t) => h("code", null, token(t).trim() === "" ? "␣".repeat(token(t).length || 1) : token(t).replace(/^ /, "·"));

const views = DATA.views.map((view, i) => {
  const svg = document.querySelectorAll("#drawing svg")[i];
  const nodes = new Map(view.nodes.map((n) => [n.id, { ...n, element: null }]));
  svg.querySelectorAll(".node").forEach((e) => { nodes.get(e.dataset.id).element = e; });
  const edges = [...svg.querySelectorAll(".edge")].map((e) => ({ element: e, source: e.dataset.source, target: e.dataset.target, weight: Number(e.dataset.weight), ...(view.edges[`${e.dataset.source}\u0000${e.dataset.target}`] || {}) }));
  return { ...view, svg, nodes, edges, least: { node: 0, edge: 0 }, picked: null };
});
let view = views[0];

function tip(text, event) {
  const box = byId("tip");
  if (text === null) { box.hidden = true; return; }
  box.textContent = text;
  box.hidden = false;
  const x = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
  const y = event.clientY + 18 + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 10 : event.clientY + 18;
  box.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
}

const ends = (n) => n.kind === "input" || n.kind === "output";
const seen = (n) => ends(n) || Math.abs(n.weight) >= view.least.node;

function refresh() {
  for (const n of view.nodes.values()) n.element.classList.toggle("off", !seen(n));
  for (const e of view.edges) {
    e.on = Math.abs(e.weight) >= view.least.edge && seen(view.nodes.get(e.source)) && seen(view.nodes.get(e.target));
    e.element.classList.toggle("off", !e.on);
  }
  const inner = [...view.nodes.values()].filter((n) => !ends(n));
  byId("node-count").textContent = `≥ ${show(view.least.node)}: ${inner.filter(seen).length} of ${inner.length}`;
  byId("edge-count").textContent = `≥ ${show(view.least.edge)}: ${view.edges.filter((e) => e.on).length} of ${view.edges.length}`;
  near(view.picked);
}

function near(id) {
  view.svg.classList.toggle("some", id !== null);
  const close = new Set([id]);
  for (const e of view.edges) {
    const touches = e.source === id || e.target === id;
    e.element.classList.toggle("near", touches);
    if (touches && e.on) close.add(e.source).add(e.target);
  }
  for (const n of view.nodes.values()) {
    n.element.classList.toggle("near", close.has(n.id));
    n.element.classList.toggle("picked", n.id === view.picked);
  }
}

const name = (n) => `${n.label || n.id}${n.place ? ` (${n.place})` : ""}`;

function brief(n) {
  const card = DATA.cards[n.card];
  const peaks = card ? [...new Set(card.contexts.map((c) => token(c.tokens[c.peak]).trim()).filter(Boolean))].slice(0, 6).join(", ") : "";
  return [name(n), n.latent === null ? null : `latent ${n.latent}`, n.weight ? `${DATA.node_unit || "weight"}: ${show(n.weight)}` : null,
    peaks ? `active on: ${peaks}` : null, card && card.promoted.length ? `promotes: ${card.promoted.slice(0, 5).map(([t]) => token(t).trim()).join(", ")}` : null].filter(Boolean).join("\n");
}

function context(c, top) {
  const line = h("li", { title: `${c.site}` });
  if (c.picture && c.picture.image.startsWith("data:image/png;base64,")) line.append(h("img", { src: c.picture.image, alt: "image" }));
  c.tokens.forEach((t, i) => {
    const v = c.values[i], strength = isNumber(v) && v > 0 ? Math.min(1, Math.sqrt(v / top)) : 0;
    line.append(h("span", { class: `${strength ? "on" : ""}${i === c.peak ? " peak" : ""}`.trim() || null, style: strength ? `--a:${(0.1 + 0.75 * strength).toFixed(2)}` : null, title: show(v) }, c.picture && i === c.peak ? "▦" : token(t)));
  });
  return line;
}

function links(title, some, other) {
  const rows = some.filter((e) => e.on).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, 12);
  return rows.length ? [h("h3", null, title), h("table", null, h("tbody", null, rows.map((e) => h("tr", null, h("th", null, show(e.weight)),
    h("td", null, h("button", { class: "plain", type: "button", onclick: () => pick(e[other]) }, name(view.nodes.get(e[other]))), e.label ? ` ${e.label}` : null,
      Object.entries(e.facts || {}).map(([k, v]) => h("span", { class: "muted" }, ` ${k} ${show(v)}`)))))))] : [];
}

function pick(id) {
  view.picked = id === view.picked ? null : id;
  const box = byId("detail");
  if (view.picked === null) { box.replaceChildren(...hint()); near(null); return; }
  const n = view.nodes.get(id), card = DATA.cards[n.card];
  const facts = [[DATA.node_unit || "weight", ends(n) ? null : n.weight], ["site", n.site || null], ["place", n.place || null], ["latent", n.latent], ["supernode", n.group || null], ...Object.entries(n.facts)];
  box.replaceChildren(
    h("h2", null, n.label || n.id),
    h("table", null, h("tbody", null, facts.filter(([, v]) => v !== null && v !== undefined).map(([k, v]) => h("tr", null, h("th", null, k), h("td", null, show(v)))))),
    ...(card && card.contexts.length ? [h("h3", null, "Most active in harvested text"), h("ul", { class: "contexts" }, card.contexts.map((c) => context(c, card.peak)))] : []),
    ...(card && card.promoted.length ? [h("h3", null, "Promotes"), h("p", null, card.promoted.map(([t]) => chip(t)))] : []),
    ...(card && card.suppressed.length ? [h("h3", null, "Suppresses"), h("p", null, card.suppressed.map(([t]) => chip(t)))] : []),
    ...links("From", view.edges.filter((e) => e.target === id), "source"), ...links("To", view.edges.filter((e) => e.source === id), "target"));
  near(view.picked);
}

const hint = () => [h("h2", null, "Details"), h("p", { class: "muted" }, "Point at a node or an edge, or click a node: what it responds to, what it promotes, where it gets its value from. "
  + `Nodes: ${DATA.node_unit || "weight"} (the shaded part of a box). Edges: ${view.edge_unit || "weight"}; blue and whole: positive, orange and dashed: negative.`)];

function slider(kind, text) {
  const input = h("input", { type: "range", min: 0, max: 100, value: 0, id: `${kind}-least`, "aria-label": `least ${text}`, oninput: () => {
    const top = kind === "node" ? view.top.node : view.top.edge;
    view.least[kind] = top * (input.value / 100) ** 2;
    refresh();
  } });
  return h("label", null, text, input, h("output", { id: `${kind}-count` }));
}

function choose(index) {
  view = views[index];
  views.forEach((v, i) => v.svg.toggleAttribute("hidden", i !== index));
  document.querySelectorAll("#tools button").forEach((b, i) => b.setAttribute("aria-pressed", i === index));
  for (const kind of ["node", "edge"]) byId(`${kind}-least`).value = view.top[kind] ? 100 * Math.sqrt(view.least[kind] / view.top[kind]) : 0;
  view.picked = null;
  byId("detail").replaceChildren(...hint());
  refresh();
}

for (const v of views) {
  v.svg.style.minWidth = `${0.75 * v.svg.viewBox.baseVal.width}px`;  // shrinks to fit, but never so far that labels cannot be read
  const inner = [...v.nodes.values()].filter((n) => !ends(n)).map((n) => Math.abs(n.weight));
  v.top = { node: Math.max(0, ...inner), edge: Math.max(0, ...v.edges.map((e) => Math.abs(e.weight))) };
  v.least.edge = v.edges.length > v.shown ? v.edges.map((e) => Math.abs(e.weight)).sort((a, b) => b - a)[v.shown - 1] : 0;
  for (const n of v.nodes.values()) {
    n.element.addEventListener("pointermove", (e) => tip(brief(n), e));
    n.element.addEventListener("pointerenter", () => { if (v.picked === null) near(n.id); });
    n.element.addEventListener("pointerleave", () => { tip(null); if (v.picked === null) near(null); });
    n.element.addEventListener("click", (e) => { e.stopPropagation(); pick(n.id); });
    n.element.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); pick(n.id); } });
  }
  for (const e of v.edges) {
    const text = () => `${name(v.nodes.get(e.source))} → ${name(v.nodes.get(e.target))}${e.label ? `, ${e.label}` : ""}\n${show(e.weight)} ${v.edge_unit || ""}`;
    e.element.addEventListener("pointermove", (event) => tip(text(), event));
    e.element.addEventListener("pointerleave", () => tip(null));
  }
  v.svg.addEventListener("click", () => { if (v.picked !== null) pick(v.picked); });
}
byId("tools").append(views.length > 1 ? h("span", null, views.map((v, i) => [h("button", { type: "button", onclick: () => choose(i) }, v.name), " "])) : "", slider("node", "nodes"), slider("edge", "edges"));
choose(0);
if (location.hash.length > 1 && view.nodes.has(decodeURIComponent(location.hash.slice(1)))) pick(decodeURIComponent(location.hash.slice(1)));
