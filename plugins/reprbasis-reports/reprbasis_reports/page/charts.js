"use strict";
// Charts from plain data: line, bar, histogram (SVG) and heatmap (canvas), each with axis titles, a caption, the value under
// the pointer, and the numbers as a table for those who cannot see the drawing.

const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 40;

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return out;
}

function scale(low, high, from, to, log) {
  if (log) { const a = Math.log(low), b = Math.log(high); return (v) => from + ((Math.log(v) - a) / (b - a || 1)) * (to - from); }
  return (v) => from + ((v - low) / (high - low || 1)) * (to - from);
}

function short(x) {
  if (!isNumber(x)) return String(x ?? "");
  const a = Math.abs(x);
  if (a >= 1e9) return +(x / 1e9).toPrecision(3) + "G";
  if (a >= 1e6) return +(x / 1e6).toPrecision(3) + "M";
  if (a >= 1e4) return +(x / 1e3).toPrecision(3) + "k";
  return String(+x.toPrecision(3)).replace("-", "−");
}

function axes(svg, width, height, x, y, xs, ys, xLabel, yLabel) {
  for (const v of ys) {
    const at = y(v);
    svg.append(h("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }),
      h("text", { class: "tick", x: LEFT - 6, y: at + 3.5, "text-anchor": "end" }, short(v)));
  }
  for (const [at, label] of xs) svg.append(h("text", { class: "tick", x: at, y: height - BOTTOM + 15, "text-anchor": "middle" }, label));
  svg.append(h("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }));
  if (xLabel) svg.append(h("text", { class: "label", x: (LEFT + width - RIGHT) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  if (yLabel) svg.append(h("text", { class: "label", transform: `translate(11 ${(TOP + height - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, words(yLabel)));
}

function canvas2d(width, height) {
  const ratio = window.devicePixelRatio || 1;
  const node = h("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio), style: `width:${width}px;height:${height}px` });
  const pen = node.getContext("2d");
  pen.scale(ratio, ratio);
  return [node, pen];
}

function range(values, zero) {
  const v = values.filter(isNumber);
  if (!v.length) return [0, 1];
  let low = Math.min(...v), high = Math.max(...v);
  if (zero || (low > 0 && low < 0.4 * high)) low = Math.min(0, low);
  if (low === high) { low -= 0.5; high += 0.5; }
  return [low, high + (high - low) * 0.04];
}

/** Colour of a series: a series that stands alone needs no colour of its own. */
const paintOf = (name, names) => (names.length > 1 ? colourOf(name) : "var(--accent)");

/** Lines over numbers or labels; `bands` name -> [low, high] arrays. */
function lineChart(figure, { width = 460, height = 240, log = false } = {}) {
  const names = Object.keys(figure.series);
  const numeric = figure.x.length > 0 && figure.x.every(isNumber);
  const xs = numeric ? figure.x : figure.x.map((_, i) => i);
  const all = names.flatMap((n) => figure.series[n]).filter((v) => isNumber(v) && (!log || v > 0));
  const [low, high] = log && all.length ? [Math.min(...all) * 0.9, Math.max(...all) * 1.1] : range(all);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const x = scale(x0, x1, LEFT + 6, width - RIGHT - 6), y = scale(low, high, height - BOTTOM, TOP, log);
  const svg = h("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": figure.title });
  const yTicks = log ? unique([low, Math.sqrt(low * high), high].map((v) => +v.toPrecision(2))) : ticks(low, high, 5);
  const xTicks = numeric ? ticks(x0, x1, Math.max(3, width / 62)).map((v) => [x(v), short(v)])
    : xs.filter((i) => i % Math.ceil(xs.length / Math.max(3, width / 70)) === 0).map((i) => [x(i), figure.x[i]]);
  axes(svg, width, height, x, y, xTicks, yTicks, figure.x_label, figure.y_label);
  for (const name of names) {
    let path = "", pen = false;
    figure.series[name].forEach((v, i) => {
      const fine = isNumber(v) && (!log || v > 0);
      if (fine) path += `${pen ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(v).toFixed(1)}`;
      pen = fine;
    });
    svg.append(h("path", { class: "series", d: path, style: `stroke:${paintOf(name, names)}` }));
    if (xs.length <= 40) figure.series[name].forEach((v, i) => {
      if (isNumber(v) && (!log || v > 0)) svg.append(h("circle", { cx: x(xs[i]), cy: y(v), r: 2.2, style: `fill:${paintOf(name, names)}` }));
    });
  }
  const cursor = h("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
    let best = 0;
    xs.forEach((v, i) => { if (Math.abs(x(v) - at) < Math.abs(x(xs[best]) - at)) best = i; });
    cursor.setAttribute("x1", x(xs[best])); cursor.setAttribute("x2", x(xs[best])); cursor.setAttribute("visibility", "visible");
    tip([`${figure.x_label || "x"} ${numeric ? show(figure.x[best]) : figure.x[best]}`, ...names.map((n) => `${n}: ${show(figure.series[n][best])}`)].join("\n"), event);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); tip(null); });
  return svg;
}

/** Bars, grouped by series; for a histogram `x` holds the edges (one more than the counts). */
function barChart(figure, { width = 460, height = 240, log = false } = {}) {
  const names = Object.keys(figure.series);
  const count = Math.max(0, ...names.map((n) => figure.series[n].length));
  const edges = figure.kind === "histogram" && figure.x.length === count + 1;
  const shape = log ? (v) => Math.log10(1 + Math.max(0, v)) : (v) => v;
  const [low, high] = range(names.flatMap((n) => figure.series[n]).map((v) => (isNumber(v) ? shape(v) : v)), true);
  const y = scale(low, high, height - BOTTOM, TOP);
  const step = (width - LEFT - RIGHT) / Math.max(1, count), gap = edges ? 0.5 : Math.min(6, step * 0.2);
  const svg = h("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": figure.title });
  const every = Math.max(1, Math.ceil(count / (width / 55)));
  const labels = edges ? figure.x.map((v, i) => [LEFT + i * step, short(v)]) : figure.x.map((v, i) => [LEFT + (i + 0.5) * step, short(v)]);
  const yTicks = log ? [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter((v) => shape(v) <= high) : ticks(low, high, 5);
  axes(svg, width, height, null, (v) => y(shape(v)), labels.filter((_, i) => i % every === 0), yTicks, figure.x_label, figure.y_label);
  names.forEach((name, k) => figure.series[name].forEach((v, i) => {
    if (!isNumber(v)) return;
    const wide = (step - gap) / names.length, top = Math.min(y(shape(v)), y(0)), high_ = Math.abs(y(shape(v)) - y(0));
    const label = edges ? `${short(figure.x[i])} to ${short(figure.x[i + 1])}` : figure.x[i] ?? i;
    svg.append(h("rect", {
      class: "bar", x: LEFT + i * step + gap / 2 + k * wide, y: top, width: Math.max(0.6, wide - (edges ? 0.5 : 0)), height: Math.max(v ? 1 : 0, high_),
      style: `fill:${paintOf(name, names)}`, onpointermove: (e) => tip(`${label}\n${name}: ${show(v)}`, e), onpointerleave: () => tip(null) }));
  }));
  return svg;
}

/** Rows of values as colours on a canvas; the scale stands below it. */
function heatChart(figure, { width = 460 } = {}) {
  const [name, rows] = Object.entries(figure.series)[0] || ["", []];
  const columns = Math.max(1, ...rows.map((r) => r.length));
  const values = rows.flat().filter(isNumber);
  const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-9);
  const left = 64, cell = (width - left - 8) / columns, tall = rows.length > 60 ? Math.max(2, Math.min(4, 480 / rows.length)) : Math.max(10, Math.min(22, 480 / Math.max(1, rows.length)));
  const height = rows.length * tall;
  const [node, pen] = canvas2d(width, height + 34);
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `${figure.title}. ${figure.caption}`);
  const paint = () => {
    const style = getComputedStyle(document.documentElement), read = (v) => style.getPropertyValue(v).trim();
    const stops = ["--h0", "--h1", "--h2", "--h3", "--h4"].map((v) => read(v).match(/\d+/g).map(Number));
    const colour = (v) => {
      const t = Math.min(0.9999, Math.max(0, Math.sqrt((v - low) / (high - low)))) * (stops.length - 1), i = Math.floor(t);
      return `rgb(${stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (t - i)))})`;
    };
    pen.clearRect(0, 0, width, height + 34);
    rows.forEach((row, r) => row.forEach((v, c) => {
      pen.fillStyle = isNumber(v) ? colour(v) : read("--line");
      pen.fillRect(left + c * cell, r * tall, Math.ceil(cell) , Math.ceil(tall));
    }));
    pen.fillStyle = read("--muted");
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    const everyRow = Math.ceil(16 / tall);
    figure.y.forEach((label, r) => { if (r % everyRow === 0) pen.fillText(String(label), left - 6, r * tall + Math.max(9, tall / 2 + 4)); });
    pen.textAlign = "center";
    const layers = figure.x.map(layer), plain = layers.every((v) => v !== null) && unique(figure.x.map(family)).length === 1;
    const everyColumn = Math.ceil((plain ? 26 : 70) / cell);
    figure.x.forEach((label, c) => { if (c % everyColumn === 0) pen.fillText(plain ? layers[c] : String(label), left + (c + 0.5) * cell, height + 14); });
    pen.fillText(words(figure.x_label), left + (width - left) / 2, height + 30);
  };
  paint();
  new MutationObserver(paint).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  node.addEventListener("pointermove", (event) => {
    const box = node.getBoundingClientRect();
    const c = Math.floor((((event.clientX - box.left) / box.width) * width - left) / cell), r = Math.floor((((event.clientY - box.top) / box.height) * (height + 34)) / tall);
    if (c < 0 || c >= columns || r < 0 || r >= rows.length) return tip(null);
    tip(`${figure.y_label || "row"} ${figure.y[r] ?? r}, ${figure.x_label || "column"} ${figure.x[c] ?? c}\n${name}: ${show(rows[r][c])}`, event);
  });
  node.addEventListener("pointerleave", () => tip(null));
  return h("div", null, node, h("div", { class: "scale" }, show(low), h("i", { "aria-hidden": "true" }), show(high), h("span", { class: "muted" }, ` ${words(name)}, colour by square root`)));
}

/** Words in a table, coloured by a number in [0, 1]; one series at a time. A cell is [text, value, note, marked]. */
function gridChart(figure) {
  const names = Object.keys(figure.series), table = h("table", { class: "words" });
  const head = h("thead", null, h("tr", null, h("th", null, ""), figure.x.map((t) => h("th", { scope: "col" }, t))));
  const draw = (name) => {
    const body = h("tbody", null, figure.series[name].map((row, r) => h("tr", null, h("th", { scope: "row" }, figure.y[r] ?? r),
      row.map(([text, value, note, marked], c) => h("td", {
        class: marked ? "marked" : null, style: isNumber(value) ? `background:rgba(var(--hot), ${(0.7 * Math.min(1, Math.max(0, value))).toFixed(3)})` : null,
        onpointermove: (e) => tip(`${figure.y[r] ?? r} after "${figure.x[c] ?? c}"${names.length > 1 ? `, ${name}` : ""}\n${note}`, e),
        onpointerleave: () => tip(null) }, text.trim() === "" ? JSON.stringify(text).slice(1, -1).replaceAll(" ", "␣") : text)))));
    table.replaceChildren(head, body);
  };
  draw(names[0]);
  const buttons = names.map((name) => h("button", { type: "button", "aria-pressed": String(name === names[0]), onclick: (e) => {
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === e.currentTarget)));
    draw(name);
  } }, name));
  return h("div", null, names.length > 1 ? h("div", { class: "chips", role: "group", "aria-label": "Which reading" }, buttons) : null, h("div", { class: "scroll tall" }, table));
}

function figureTable(figure) {
  const heat = figure.kind === "heatmap", names = Object.keys(figure.series);
  const rows = heat ? Object.values(figure.series)[0] || [] : figure.series[names[0]] || [];
  const head = heat ? [figure.y_label || "", ...figure.x] : [figure.x_label || "", ...names];
  const body = rows.map((row, i) => (heat ? [figure.y[i] ?? i, ...row.map(show)]
    : [figure.kind === "histogram" && figure.x.length === rows.length + 1 ? `${short(figure.x[i])} to ${short(figure.x[i + 1])}` : figure.x[i] ?? i, ...names.map((n) => show(figure.series[n][i]))]));
  return h("div", { class: "scroll low" }, h("table", { class: "plain" }, h("thead", null, h("tr", null, head.map((t) => h("th", null, isNumber(t) ? show(t) : t)))),
    h("tbody", null, body.map((r) => h("tr", null, r.map((t, i) => h(i ? "td" : "th", null, t)))))));
}

/** A figure with its title, legend, caption and table. */
function drawFigure(figure, options = {}) {
  const draw = { line: lineChart, heatmap: heatChart, bar: barChart, histogram: barChart, grid: gridChart }[figure.kind];
  const names = Object.keys(figure.series);
  const empty = !draw || !names.some((n) => figure.series[n].length);
  const holder = h("div", { class: "drawing" });
  const paint = (log) => holder.replaceChildren(empty ? h("p", { class: "muted" }, draw ? "No data." : `This report cannot draw a figure of kind '${figure.kind}'.`) : draw(figure, { ...options, log }));
  paint(Boolean(options.log));
  const drawn = figure.kind !== "heatmap" && figure.kind !== "grid";
  const positive = !empty && !options.log && drawn && names.flatMap((n) => figure.series[n]).filter(isNumber);
  const wide = positive && positive.length && Math.min(...positive) >= 0 && Math.max(...positive) > 20 * Math.max(1e-9, median(positive));
  const logBox = wide ? h("label", { class: "mini" }, h("input", { type: "checkbox", onchange: (e) => paint(e.target.checked) }), " log") : null;
  const legend = names.length > 1 && drawn
    ? h("div", { class: "legend" }, names.map((n) => h("span", null, h("i", { style: `background:${colourOf(n)}` }), words(n) || "value"))) : null;
  return h("figure", { class: figure.kind }, h("div", { class: "figure-head" }, h("h4", null, figure.title), logBox), legend, holder,
    figure.caption ? h("figcaption", null, figure.caption) : null, empty || figure.kind === "grid" ? null : fold("Numbers as a table", () => figureTable(figure), { class: "numbers" }));
}
