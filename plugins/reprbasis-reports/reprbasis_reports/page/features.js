"use strict";
// The feature browser: a list that can be searched and sorted, and one feature in detail.

/** A token as people can see it: control tokens as tags, line ends and tabs as signs, spaces kept. */
function tokenText(text) {
  return String(text).replaceAll("\r", "␍").replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u200b-\u200f\u202a-\u202e\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function tokenChip(text) {
  const whole = tokenText(text), shown = whole.length > 22 ? `${whole.slice(0, 20)}…` : whole;
  return h("code", { class: "token", title: whole === shown ? null : `${whole.length} characters` }, shown.trim() === "" ? "␣".repeat(shown.length || 1) : shown.replace(/^ /, "·"));
}

function contextLine(context, top) {
  const line = h("span", { class: "text" });
  context.tokens.forEach((token, i) => {
    const value = context.values[i], strength = isNumber(value) && value > 0 ? Math.min(1, Math.sqrt(value / top)) : 0;
    const peak = i === context.peak, special = (context.special || [])[i];
    const sign = peak && context.picture ? "▦" : tokenText(token);  // stands for all tokens of the image
    line.append(h("span", {
      class: [special ? "special" : "", peak ? "peak" : "", strength ? (strength > 0.6 ? "on strong" : "on") : ""].join(" ").trim() || null,
      style: strength ? `--a:${(0.12 + 0.78 * strength).toFixed(3)}` : null, title: `${tokenText(token)}  ${show(value)}` }, sign));
    if (token.includes("\n") && !special) line.append(h("wbr"));
  });
  return line;
}

/** An image with the activation of each of its tokens over it; the peak is framed. */
function contextPicture(picture, top) {
  const wide = 108, high = Math.round((wide * picture.rows) / picture.columns), w = wide / picture.columns, t = high / picture.rows;
  const svg = h("svg", { class: "picture", viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: "img", "aria-label": `image of ${picture.rows} by ${picture.columns} tokens; the peak is in row ${Math.floor(picture.peak / picture.columns) + 1}, column ${(picture.peak % picture.columns) + 1}` });
  if (picture.image.startsWith("data:image/png;base64,")) svg.append(h("image", { href: picture.image, width: wide, height: high, preserveAspectRatio: "none" }));
  picture.values.forEach((value, i) => {
    const strength = isNumber(value) && value > 0 ? Math.min(1, Math.sqrt(value / top)) : 0;
    svg.append(h("rect", { class: ["cell", strength ? "on" : "", i === picture.peak ? "peak" : ""].join(" ").trim(), x: (i % picture.columns) * w, y: Math.floor(i / picture.columns) * t, width: w, height: t, style: `--a:${(0.65 * strength).toFixed(3)}`, onpointermove: (e) => tip(`row ${Math.floor(i / picture.columns) + 1}, column ${(i % picture.columns) + 1}: ${show(value)}`, e), onpointerleave: () => tip(null) }));
  });
  return h("span", { class: "seen" }, svg, picture.image && picture.values.some((v) => v > 0) ? h("img", { src: picture.image, width: wide, height: high, alt: "the same image without marks" }) : null);
}

/** Bars over depth, one small chart a family, all with the same height scale. */
function depthBars(feature, sites) {
  const top = Math.max(...Object.values(feature.sites), 1e-9);
  const families = unique(sites.map(family));
  return h("div", { class: "depth" }, families.map((f) => {
    const members = sites.filter((s) => family(s) === f), share = members.reduce((sum, s) => sum + (feature.sites[s] || 0), 0);
    const wide = Math.max(26, members.length * 8), high = 64;
    const svg = h("svg", { viewBox: `0 0 ${wide} ${high + 14}`, width: wide, height: high + 14, role: "img", "aria-label": `${f}: ${members.filter((s) => feature.sites[s]).map((s) => `${s} ${Math.round(100 * feature.sites[s])} %`).join(", ") || "nothing"}` });
    svg.append(h("line", { class: "axis", x1: 0, x2: wide, y1: high, y2: high }));
    members.forEach((site, i) => {
      const value = feature.sites[site] || 0, tall = value ? Math.max(1.5, (value / top) * (high - 2)) : 0;
      svg.append(h("rect", { class: "bar", x: i * 8 + 1, width: members.length > 1 ? 6.4 : 18, y: high - tall, height: tall, style: "fill:var(--accent)" }),
        h("rect", { class: "hit", x: i * 8, width: Math.max(8, wide / members.length), y: 0, height: high, onpointermove: (e) => tip(`${site}: ${(100 * value).toFixed(1)} % of this latent's activation`, e), onpointerleave: () => tip(null) }));
      if (members.length > 1 && (i % 10 === 0 || i === members.length - 1) && !(members.length - 1 - i < 4 && i % 10 === 0 && i !== members.length - 1)) svg.append(h("text", { class: "tick", x: i * 8 + 4, y: high + 12, "text-anchor": "middle" }, layer(site) ?? i));
    });
    return h("div", null, svg, h("div", { class: "muted" }, `${f} `, h("b", null, `${Math.round(100 * share)} %`)));
  }));
}

/** The same as one path, for the list. */
function spark(feature, sites) {
  const top = Math.max(...Object.values(feature.sites), 1e-9);
  let path = "";
  sites.forEach((site, i) => { const v = feature.sites[site]; if (v) path += `M${i + 0.5} 16V${(16 - Math.max(1, (v / top) * 15)).toFixed(1)}`; });
  return h("svg", { class: "spark", viewBox: `0 0 ${Math.max(1, sites.length)} 16`, preserveAspectRatio: "none", "aria-hidden": "true" }, h("path", { d: path }));
}

function effectsTable(title, rows, kind) {
  if (!rows.length) return null;
  const top = Math.max(...rows.map(([, v]) => Math.abs(v)), 1e-9);
  return h("div", null, h("h4", null, title), h("table", { class: `effects ${kind}` }, h("tbody", null, rows.map(([token, value]) => h("tr", null, h("th", { scope: "row" }, tokenChip(token)),
    h("td", null, h("i", { style: `width:${((70 * Math.abs(value)) / top).toFixed(0)}px` }), show(value)))))));
}

function featureBrowser(root, sets) {
  let set = sets[0], sites = [], list = [], shown = [], current = null;
  const label = (f) => (sets.length > 1 ? `${set.step}:f${f.latent}` : `f${f.latent}`);
  const mine = (f) => f.peakText ?? (f.peakText = f.contexts.map((c) => (c.picture ? "▦" : c.tokens[c.peak] || "")));
  const haystack = (f) => f.hay ?? (f.hay = [...mine(f), ...f.promoted.slice(0, 10).map(([t]) => t)].join("\u0000").toLowerCase());

  const search = h("input", { type: "search", placeholder: "token or latent number", "aria-label": "Search by token or latent number" });
  const siteBox = h("select", { "aria-label": "Only features that live at" }), sortBox = h("select", { "aria-label": "Sort by" });
  const count = h("span", { class: "muted", role: "status" });
  const column = h("ol", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Features" }), detail = h("article", { class: "detail", "aria-live": "polite" });
  const pick = sets.length > 1 ? h("select", { "aria-label": "Features of step", onchange: (e) => { use(sets[e.target.value]); go(shown[0]); } }, sets.map((s, i) => h("option", { value: i }, `features of step '${s.step}'`))) : null;
  const anyButton = h("button", { type: "button", title: "Key: r", onclick: () => random() }, "Random");
  root.append(h("aside", null, h("div", { class: "tools" }, pick, search, siteBox, h("div", { class: "row" }, sortBox, anyButton), h("div", { class: "row" }, count, h("button", { type: "button", class: "link", onclick: () => help() }, "keys: ?"))), column), detail);

  const orders = { "latent number": (f) => f.latent, "rate, most active first": (f) => -f.rate, "rate, rarest first": (f) => f.rate, "strongest peak": (f) => -f.peak };

  function use(next) {
    set = next;
    const known = DATA.findings.flatMap((f) => f.measurements.map((m) => m.site)).filter((s) => s && family(s) !== TOGETHER);
    const used = unique(set.features.flatMap((f) => Object.keys(f.sites)));
    const basis = DATA.steps.map((s) => s.facts.sites).find((s) => Array.isArray(s) && used.every((u) => s.includes(u)));
    const all = basis || unique([...known, ...used]);
    const families = unique(all.map(family));
    sites = families.flatMap((f) => all.filter((s) => family(s) === f).sort((a, b) => (layer(a) ?? 0) - (layer(b) ?? 0)));
    siteBox.replaceChildren(h("option", { value: "" }, "at any site"), h("optgroup", { label: "mostly at" }, families.map((f) => h("option", { value: `family ${f}` }, f))),
      h("optgroup", { label: "at least 5 % at" }, sites.map((s) => h("option", { value: `site ${s}` }, s))));
    const notes = unique(set.features.flatMap((f) => Object.keys(f.notes || {})));
    const kinds = { ...orders };
    for (const n of notes) { kinds[`${words(n)}, highest first`] = (f) => -((f.notes || {})[n] ?? -Infinity); kinds[`${words(n)}, lowest first`] = (f) => (f.notes || {})[n] ?? Infinity; }
    sortBox.replaceChildren(...Object.keys(kinds).map((k) => h("option", { value: k }, `sort: ${k}`)));
    sortBox.kinds = kinds;
    refresh();
  }

  function refresh() {
    const text = search.value.toLowerCase(), [kind, where] = [siteBox.value.split(" ")[0], siteBox.value.split(" ").slice(1).join(" ")];
    const number = /^#?f?(\d+)$/.exec(text.trim());
    const lives = (f) => {
      if (!kind) return true;
      if (kind === "site") return (f.sites[where] || 0) >= 0.05;
      return Object.entries(f.sites).reduce((sum, [s, v]) => sum + (family(s) === where ? v : 0), 0) > 0.5;
    };
    const key = sortBox.kinds[sortBox.value];
    shown = set.features.filter((f) => lives(f) && (!text || (number && String(f.latent).startsWith(number[1])) || haystack(f).includes(text))).sort((a, b) => key(a) - key(b) || a.latent - b.latent);
    count.textContent = shown.length === set.features.length ? `${shown.length} features` : `${shown.length} of ${set.features.length}`;
    column.replaceChildren(...shown.map((f) => f.row ?? (f.row = row(f))));
    if (!shown.length) column.append(h("li", { class: "empty" }, "No feature fits. Try a shorter token, or another site."));
  }

  function row(f) {
    const control = (t) => f.contexts.some((c) => c.tokens[c.peak] === t && (c.special || [])[c.peak]);
    const tokens = unique(mine(f)).sort((a, b) => control(a) - control(b)).slice(0, 4);
    return h("li", { role: "option", id: `row-${label(f)}`, onclick: () => go(f) }, h("span", { class: "id" }, `#${f.latent}`), h("span", { class: "tokens" }, tokens.map(tokenChip)), spark(f, sites), h("span", { class: "rate", title: "share of rows where it is active" }, share(f.rate)));
  }

  function draw(f) {
    const top = Math.max(f.peak || 0, ...f.contexts.flatMap((c) => c.values).filter(isNumber), 1e-9);
    const where = Object.entries(f.sites).sort((a, b) => b[1] - a[1])[0];
    const [edges, counts] = f.histogram || [[], []];
    const histogram = counts && counts.length ? drawFigure({ kind: "histogram", title: "How strongly, when active", caption: "Counts of its positive activations; the counts are drawn on a log scale.", x: edges, series: { activations: counts }, x_label: "activation", y_label: "count" }, { width: 380, height: 190, log: true }) : null;
    const at = shown.indexOf(f);
    detail.replaceChildren(
      h("header", null, h("h2", { tabindex: "-1" }, `Latent ${f.latent}`), h("span", { class: "buttons" },
        h("button", { type: "button", title: "Key: k or ↑", onclick: () => move(-1) }, "←"), h("span", { class: "muted" }, at >= 0 ? `${at + 1} of ${shown.length}` : ""), h("button", { type: "button", title: "Key: j or ↓", onclick: () => move(1) }, "→"),
        h("a", { href: `#${label(f)}`, class: "button", title: "Link to this feature" }, "#" + label(f)))),
      facts([["active on", `${share(f.rate)} rows`.replace("% rows", "% of rows")], ["strongest", f.peak], ["most at", where ? `${where[0]} (${Math.round(100 * where[1])} %)` : null], ...Object.entries(f.notes || {}).map(([k, v]) => [words(k), v])]),
      h("h3", null, "Where it lives"), h("p", { class: "hint" }, "Share of its total activation at each site, over depth."), depthBars(f, sites),
      h("h3", null, "What it responds to"), h("p", { class: "hint" }, "Its strongest contexts. The framed token has the value on the left; the deeper the colour, the stronger (square root of the share of its maximum)."), f.contexts.length ? h("ol", { class: "contexts" }, f.contexts.map((c) => h("li", null, h("span", { class: "at" }, h("b", null, show(c.values[c.peak])), h("span", { class: "muted" }, c.site)), c.picture ? h("div", null, contextPicture(c.picture, top), contextLine(c, top)) : contextLine(c, top)))) : h("p", { class: "muted" }, "No contexts were kept."),
      h("div", { class: "columns" }, h("div", { class: "both" }, effectsTable("Tokens it promotes", f.promoted || [], "up"), effectsTable("Tokens it suppresses", f.suppressed || [], "down")), histogram));
    detail.scrollTop = 0;
  }

  function go(f) {
    if (!f) return;
    const hash = "#" + label(f);
    if (location.hash === hash) select(f); else location.hash = hash;
  }
  function select(f) {
    if (current && current.row) current.row.removeAttribute("aria-selected");
    current = f;
    if (!f.row) f.row = row(f);
    f.row.setAttribute("aria-selected", "true");
    column.setAttribute("aria-activedescendant", f.row.id);
    if (f.row.isConnected) f.row.scrollIntoView({ block: "nearest" });
    draw(f);
  }
  const move = (by) => { const at = shown.indexOf(current); go(shown[Math.min(shown.length - 1, Math.max(0, at < 0 ? 0 : at + by))]); };
  const random = () => { if (shown.length) go(shown[Math.floor(Math.random() * shown.length)]); };
  function help() {
    const box = document.getElementById("help"), keys = [["j or ↓", "next feature"], ["k or ↑", "previous feature"], ["r", "a random one"], ["/", "search"], ["Esc", "leave the search field or this box"], ["?", "this help"]];
    box.replaceChildren(h("h3", null, "Keys"), h("table", { class: "plain" }, h("tbody", null, keys.map(([k, v]) => h("tr", null, h("th", { scope: "row" }, h("kbd", null, k)), h("td", null, v))))), h("button", { type: "button", onclick: () => box.close() }, "close"));
    box.showModal();
  }

  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 80); });
  siteBox.addEventListener("change", refresh);
  sortBox.addEventListener("change", refresh);
  addEventListener("keydown", (event) => {
    if (root.hidden || event.ctrlKey || event.metaKey || event.altKey || document.getElementById("help").open) return;
    if (event.target.matches("input, select, textarea")) { if (event.key === "Escape") event.target.blur(); return; }
    const action = { j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1), r: random, "/": () => search.focus(), "?": help }[event.key];
    if (action) { event.preventDefault(); action(); }
  });

  use(sets[0]);
  return (hash) => {
    const found = /^(?:(.+):)?f(\d+)$/.exec(hash);
    const next = found && found[1] ? sets.find((s) => s.step === found[1]) : null;
    if (next && next !== set) { use(next); if (pick) pick.value = sets.indexOf(next); }
    const wanted = found ? set.features.find((f) => f.latent === Number(found[2])) : current || shown[0];
    if (wanted) select(wanted);
    else if (found) detail.replaceChildren(h("h2", null, `Latent ${found[2]}`), h("p", { class: "notice" }, "This latent is not among the features that were kept in this report."));
  };
}

start();
