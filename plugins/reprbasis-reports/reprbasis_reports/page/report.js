"use strict";
// The report proper: what was run, training curves, measurements, figures.

const GLOSSARY = {
  ev: "Explained variance: the share of a site's variance that the reconstruction keeps. 1 is perfect, 0 is what the mean alone does.",
  fvu: "Fraction of variance unexplained, 1 − explained variance. 0 is perfect.",
  fvu_first: "Fraction of variance unexplained at the first position alone, whose vectors are unlike all others.",
  l0: "How many latents are active per token, on average. Fewer is simpler.",
  alive: "How many latents were active at least once on the measured tokens.",
  alive_share: "Share of all latents that were active at least once.",
  ce_increase: "By how much the next-token cross-entropy rises when the site is replaced. 0 is no harm.",
  ce_recovered: "Share of the loss caused by mean-ablation that is avoided when the reconstruction is used instead. 1 is perfect.",
  kl_recovered: "Share of the divergence caused by mean-ablation that is avoided when the reconstruction is used instead. 1 is perfect.",
  kl: "Divergence of the model's predictions from its unchanged ones when the site is replaced. 0 is no harm.",
  reuse_rate: "Share of alive latents that fire at two or more sites.",
  layer_variance: "Variance of the layer at which a latent is active: 0 for a latent of one layer.",
  effective_layers: "Over how many layers a latent's activation is spread: exp of the entropy.",
};
const CONDITIONS = {
  global: "the learned dictionary that all sites share",
  untrained: "control: the same dictionary before any training",
  random: "control: random directions with the same number of active latents",
  mean: "control: every token replaced by the site's mean",
  zero: "control: every token replaced by zero",
  original: "the unchanged model",
  "per-site": "a dictionary of its own for the site, with its share of the parameters",
};

function section(id, title, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), children);
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, v]) => v !== null && v !== undefined && v !== "").map(([k, v]) => h("div", null, h("dt", null, k), h("dd", null, isNumber(v) ? show(v) : v))));
}

function flat(value, prefix = "") {
  if (value === null || typeof value !== "object") return [[prefix, value === null ? "none" : String(value)]];
  if (Array.isArray(value)) return value.some((v) => v && typeof v === "object") ? value.flatMap((v, i) => flat(v, `${prefix}[${i}]`))
    : [[prefix, value.length ? value.map((v) => (isNumber(v) ? show(v) : v)).join(", ") : "none"]];
  return Object.entries(value).flatMap(([k, v]) => flat(v, prefix ? `${prefix}.${k}` : k));
}

const settings = (value) => h("table", { class: "plain settings" }, h("tbody", null, flat(value).map(([k, v]) => h("tr", null, h("th", { scope: "row" }, k), h("td", null, v)))));

function overview() {
  const { run, steps } = DATA, model = run.model || {};
  const of = (type) => steps.filter((s) => s.artifact === type && Object.keys(s.facts).length).map((s) => s.facts);
  const total = steps.reduce((sum, s) => sum + (s.seconds || 0), 0);
  const bad = steps.filter((s) => s.status === "failed"), open = steps.filter((s) => s.status === "waiting");
  const [data] = of("activations"), [basis] = of("basis"), origin = (data || {}).origin || {};
  const corpus = origin.corpus && typeof origin.corpus === "object" ? origin.corpus : { use: origin.corpus };
  const checkpoint = model.checkpoint || model.use;
  const started = run.started ? run.started.replace("T", " ").replace(/(:\d\d)?\+00:00$/, " UTC") : null;
  const cards = h("div", { class: "cards" },
    checkpoint ? h("div", { class: "card" }, h("h3", null, "Model"), h("p", { class: "big" }, checkpoint), facts([["architecture", model.family], ["layers", model.n_layers], ["width", model.d_model], ["weights", String(model.revision || "").slice(0, 12)]])) : null,
    data ? h("div", { class: "card" }, h("h3", null, "Data"), h("p", { class: "big" }, `${show(origin.tokens)} tokens`), facts([["corpus", corpus.use], ["written by", corpus.generate ? "the model itself" : null], ["sequences", origin.sequences], ["sites", (data.sites || []).length], ["stored as", origin.dtype]])) : null,
    basis ? h("div", { class: "card" }, h("h3", null, "Dictionary"), h("p", { class: "big" }, `${show(basis.d_dict)} latents`), facts([["learner", String(basis.learner || "").split("/").pop()], ["width of the stream", basis.d_in], ["sites that share it", Array.isArray(basis.sites) ? basis.sites.length : basis.sites], ["trained on rows", (basis.training || {}).rows], ["epochs", (basis.training || {}).epochs]])) : null,
    h("div", { class: "card" }, h("h3", null, "Run"), h("p", { class: "big" }, total ? duration(total) : "nothing was computed"), facts([["started", started], ["seed", String(run.seed)], ["pipeline", run.source], ["reprbasis", run.versions.reprbasis], ["torch", run.versions.torch]])));
  const took = (s) => s.made || s.seconds || 0, longest = Math.max(...steps.map(took), 1e-9);
  const table = h("div", { class: "scroll" }, h("table", { class: "plain steps" },
    h("thead", null, h("tr", null, ["step", "what", "status", "time", "made", "fingerprint"].map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", null, steps.map((s) => h("tr", null, h("th", { scope: "row" }, s.name), h("td", null, s.component), h("td", null, h("span", { class: `status ${s.status}` }, s.status)),
      h("td", { class: "time" }, took(s) ? h("span", null, h("i", { style: `width:${Math.max(2, (100 * took(s)) / longest)}px` }), duration(took(s)), s.status === "reused" ? " when made" : null) : "–"),
      h("td", null, s.bytes ? `${s.artifact}, ${bytes(s.bytes)}` : s.artifact), h("td", null, h("code", null, (s.fingerprint || "").slice(0, 12))))))));
  return section("overview", run.name,
    bad.map((s) => h("div", { class: "alert", role: "alert" }, h("strong", null, `Step '${s.name}' failed. `), h("pre", null, s.error || "No message was recorded."))),
    steps.filter((s) => !["failed", "interrupted"].includes(s.status) && s.error).map((s) => h("div", { class: "alert" }, h("strong", null, `What step '${s.name}' left cannot be read. `), h("pre", null, s.error))),
    steps.filter((s) => s.status === "interrupted").map((s) => h("p", { class: "notice" }, `Step '${s.name}' was interrupted; the same command resumes.`)),
    open.length ? h("p", { class: "notice" }, `Not run: ${open.map((s) => s.name).join(", ")}.`) : null,
    !steps.length ? h("p", { class: "notice" }, "This run has no steps.") : null,
    cards, steps.length ? table : null,
    fold("All settings and versions", () => h("div", null, h("h4", null, "versions"), settings(run.versions), h("h4", null, "model"), settings(model),
      steps.map((s) => [h("h4", null, `${s.name}: settings`), settings(s.config || {}), Object.keys(s.facts).length ? [h("h4", null, `${s.name}: facts on what it made`), settings(s.facts)] : null]))));
}

function training() {
  if (!DATA.curves.length) return null;
  const skip = new Set(["step", "rows", "seconds"]);
  return section("training", "Training", DATA.curves.map(({ step, history }) => {
    const x = history.map((r) => r.rows ?? r.step), names = unique(history.flatMap(Object.keys)).filter((n) => !skip.has(n));
    const last = history[history.length - 1];
    return [h("p", { class: "lead" }, `Step '${step}': ${show(last.step)} steps, ${show(last.rows)} rows. Each panel is one quantity, averaged between two log lines; the number is its last value.`),
      h("div", { class: "grid small" }, names.map((n) => drawFigure({ kind: "line", title: `${words(n)}: ${show(last[n])}`, caption: "", x, x_label: "rows", y_label: "", series: { [n]: history.map((r) => r[n]) } }, { width: 340, height: 190 })))];
  }));
}

function cell(m, strong) {
  if (!m) return h("td", { class: "none" }, "–");
  const interval = isNumber(m.low) && isNumber(m.high) ? h("small", null, `${show(m.low)} … ${show(m.high)}`) : h("small", { class: "exact" }, "exact");
  return h("td", { class: strong ? "main" : "control", title: `${m.name}${m.condition ? ", " + m.condition : ""}${m.site ? ", " + m.site : ""}: ${m.value}${m.unit ? " " + m.unit : ""}, n = ${m.n}` },
    h("span", null, show(m.value)), isNumber(m.value) ? interval : null, h("small", { class: "n" }, `n ${show(m.n)}`));
}

function chips(label, names, hidden, change, explain) {
  return h("div", { class: "chips", role: "group", "aria-label": label }, h("span", null, label), names.map((n) => {
    const box = h("button", { type: "button", "aria-pressed": String(!hidden.has(n)), title: explain[n] || null }, words(n) || "value");
    box.addEventListener("click", () => { hidden.has(n) ? hidden.delete(n) : hidden.add(n); box.setAttribute("aria-pressed", String(!hidden.has(n))); change(); });
    return box;
  }));
}

function siteTable(measurements) {
  const names = unique(measurements.map((m) => m.name)), conditions = ordered(measurements), sites = unique(measurements.map((m) => m.site));
  const at = new Map(measurements.map((m) => [`${m.site}\u0000${m.name}\u0000${m.condition || ""}`, m]));
  const get = (site, name, condition) => at.get(`${site}\u0000${name}\u0000${condition}`);
  const present = new Set(measurements.map((m) => `${m.name}\u0000${m.condition || ""}`));
  const hiddenNames = new Set(), hiddenConditions = new Set();
  const families = unique(sites.map(family));
  const opened = new Set(families.filter((f) => sites.filter((s) => family(s) === f).length <= 2));
  let sort = null, grouped = true, filter = "";
  const holder = h("div", { class: "scroll tall" });
  const columns = () => names.filter((n) => !hiddenNames.has(n)).flatMap((name) => conditions.filter((c) => !hiddenConditions.has(c) && present.has(`${name}\u0000${c}`)).map((condition) => ({ name, condition })));
  function arrange(list) {
    if (!sort) return list;
    const value = (s) => (get(s, sort.name, sort.condition) || {}).value;
    return [...list].sort((a, b) => (isNumber(value(b)) - isNumber(value(a))) || sort.direction * ((value(a) ?? 0) - (value(b) ?? 0)));
  }
  function draw() {
    const cols = columns();
    const head1 = h("tr", null, h("th", { rowspan: 2, class: "corner", scope: "col" }, "site"));
    for (const name of unique(cols.map((c) => c.name))) {
      const unit = (measurements.find((m) => m.name === name) || {}).unit;
      head1.append(h("th", { colspan: cols.filter((c) => c.name === name).length, scope: "colgroup", class: "edge", title: GLOSSARY[name] || null }, words(name), unit ? h("small", null, ` ${unit}`) : null));
    }
    const head2 = h("tr", null, cols.map((c, i) => {
      const on = sort && sort.name === c.name && sort.condition === c.condition;
      return h("th", { scope: "col", class: i === 0 || cols[i - 1].name !== c.name ? "edge" : null, "aria-sort": on ? (sort.direction > 0 ? "ascending" : "descending") : null, title: CONDITIONS[c.condition] || null },
        h("button", { type: "button", onclick: () => { sort = on ? (sort.direction < 0 ? { ...c, direction: 1 } : null) : { ...c, direction: -1 }; draw(); } }, (words(c.condition) || "value") + (on ? (sort.direction > 0 ? " ▲" : " ▼") : "")));
    }));
    const row = (site) => h("tr", null, h("th", { scope: "row" }, site), cols.map((c, i) => { const td = cell(get(site, c.name, c.condition), c.condition === conditions[0]); if (i === 0 || cols[i - 1].name !== c.name) td.classList.add("edge"); return td; }));
    const wanted = sites.filter((s) => s.includes(filter));
    const body = h("tbody");
    if (!grouped) body.append(...arrange(wanted).map(row));
    else for (const f of families) {
      const members = wanted.filter((s) => family(s) === f);
      if (!members.length) continue;
      const open = opened.has(f) || filter !== "";
      if (members.length > 1) {
        const toggle = () => { opened.has(f) ? opened.delete(f) : opened.add(f); draw(); };
        body.append(h("tr", { class: "group" }, h("th", { scope: "rowgroup" }, h("button", { type: "button", "aria-expanded": String(open), onclick: toggle }, `${open ? "▾" : "▸"} ${f}`), h("small", null, `median of ${members.length}`)),
          cols.map((c, i) => {
            const values = members.map((s) => (get(s, c.name, c.condition) || {}).value).filter(isNumber);
            return h("td", { class: [i === 0 || cols[i - 1].name !== c.name ? "edge" : "", c.condition === conditions[0] ? "main" : "control", values.length ? "" : "none"].join(" "), title: values.length ? `median of ${values.length} sites` : null },
              values.length ? [h("span", null, show(median(values))), h("small", null, `${show(Math.min(...values))} … ${show(Math.max(...values))}`), values.length < members.length ? h("small", { class: "n on" }, `${values.length} of ${members.length}`) : null] : "–");
          })));
        if (open) body.append(...arrange(members).map(row));
      } else body.append(...arrange(members).map(row));
    }
    holder.replaceChildren(h("table", { class: "sites" }, h("thead", null, head1, head2), body));
  }
  const tools = h("div", { class: "tools" },
    h("label", null, h("span", { class: "sr" }, "Filter sites"), h("input", { type: "search", placeholder: "filter sites, e.g. resid.1", oninput: (e) => { filter = e.target.value.trim(); draw(); } })),
    h("button", { type: "button", onclick: () => { opened.size < families.length ? families.forEach((f) => opened.add(f)) : opened.clear(); draw(); } }, "open / close all"),
    h("label", { class: "mini" }, h("input", { type: "checkbox", checked: true, onchange: (e) => { grouped = e.target.checked; draw(); } }), " group by family"),
    h("label", { class: "mini" }, h("input", { type: "checkbox", onchange: (e) => holder.classList.toggle("with-n", e.target.checked) }), " show n"));
  draw();
  return h("div", null, chips("Measured", names, hiddenNames, draw, GLOSSARY), conditions.length > 1 ? chips("Under", conditions, hiddenConditions, draw, CONDITIONS) : null, tools, holder,
    h("p", { class: "hint" }, "Click a column to sort, a family to see its sites. Small print: 95 % interval of the number (for a family: smallest and largest over its sites). Hold the pointer over a number for full precision and n."));
}

function overallTable(measurements) {
  const names = unique(measurements.map((m) => m.name)), conditions = ordered(measurements);
  const table = h("div", { class: "scroll fit with-n" }, h("table", { class: "sites" },
    h("thead", null, h("tr", null, h("th", { class: "corner", scope: "col" }, "measured"), conditions.map((c) => h("th", { scope: "col", title: CONDITIONS[c] || null }, words(c) || "value")))),
    h("tbody", null, names.map((n) => {
      const named = measurements.filter((m) => m.name === n), unit = named[0].unit;
      return unique(named.map((m) => m.site ?? null)).map((site) => {
        const rows = named.filter((m) => (m.site ?? null) === site);
        return h("tr", null, h("th", { scope: "row", title: GLOSSARY[n] || null }, words(n), unit ? ` (${unit})` : null, site === null ? null : h("small", null, `${site}, together`)), conditions.map((c, i) => cell(rows.find((m) => (m.condition || "") === c), i === 0)));
      });
    }))));
  return table;
}

function legend(measurements) {
  const names = unique(measurements.map((m) => m.name)).filter((n) => GLOSSARY[n]), conditions = ordered(measurements).filter((c) => CONDITIONS[c]);
  if (!names.length && !conditions.length) return null;
  const list = (keys, source) => h("dl", { class: "glossary" }, keys.map((k) => [h("dt", null, words(k)), h("dd", null, source[k])]));
  return fold("What the words mean", () => h("div", { class: "two" }, h("div", null, h("h4", null, "Measured"), list(names, GLOSSARY)), h("div", null, h("h4", null, "Under which condition"), list(conditions, CONDITIONS))), { open: false });
}

function measured() {
  const found = DATA.findings.filter((f) => f.measurements.length || f.notes.length);
  if (!found.length) return null;
  return section("measurements", "Measurements", found.map(({ step, measurements, notes }) => {
    const local = measurements.filter((m) => ![TOGETHER, "overall"].includes(family(m.site))), overall = measurements.filter((m) => !local.includes(m));
    return [found.length > 1 ? h("h3", null, `Step '${step}'`) : null,
      notes.map((n) => h("p", { class: /alarm|warning/i.test(n) ? "alert" : "notice" }, n)), legend(measurements),
      overall.length ? [h("h3", null, "For the whole model"), overallTable(overall)] : null,
      local.length ? [h("h3", null, "Site by site"), siteTable(local)] : null];
  }));
}

function figures() {
  const found = DATA.findings.filter((f) => f.figures.length);
  if (!found.length) return null;
  return section("figures", "Figures", found.map(({ step, figures: list }) => [found.length > 1 ? h("h3", null, `Step '${step}'`) : null, h("div", { class: "grid" }, list.map((f) => drawFigure(f)))]));
}

function start() {
  const report = document.getElementById("report"), browser = document.getElementById("features"), nav = document.getElementById("nav");
  const sections = [overview(), training(), measured(), figures()].filter(Boolean);
  report.append(...sections);
  const sets = DATA.findings.filter((f) => f.features.length);
  const links = sections.map((s) => ["#" + s.id, s.id === "overview" ? "Overview" : s.querySelector("h2").textContent]);
  if (sets.length) links.push(["#features", `Features (${sets.reduce((n, f) => n + f.features.length, 0)})`]);
  nav.append(...links.map(([href, text]) => h("a", { href }, text)));
  const open = sets.length ? featureBrowser(browser, sets) : null;
  function route() {
    const hash = decodeURIComponent(location.hash.slice(1));
    const wanted = open && (hash === "features" || /^(.+:)?f\d+$/.test(hash));
    report.hidden = Boolean(wanted);
    browser.hidden = !wanted;
    document.body.classList.toggle("browsing", Boolean(wanted));
    nav.querySelectorAll("a").forEach((a) => a.setAttribute("aria-current", String(wanted ? a.hash === "#features" : a.hash === "#" + (hash || "overview"))));
    if (wanted) open(hash);
    else if (hash) { const target = document.getElementById(hash); if (target) target.scrollIntoView(); }
  }
  addEventListener("hashchange", route);
  route();
}

(() => {
  const root = document.documentElement;
  let kept = null;
  try { kept = localStorage.getItem("reprbasis-theme"); } catch { kept = null; }  // storage may be closed to local files
  if (kept) root.dataset.theme = kept;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("reprbasis-theme", root.dataset.theme); } catch { /* the choice lasts as long as the page */ }
  });
})();
