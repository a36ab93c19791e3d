"""Which few nodes of a dictionary carry a task: learned masks against scorers and controls on a real model, as a page with a plot.

    python examples/circuits.py runs/quickstart/basis-* --out docs/results/circuits.md [--tasks sva ioi induction]

The basis is the one that `reprbasis run examples/quickstart.yaml` trains (any other will do). Each task's numbers are kept under
`--parts` after every seed; tasks that are there already are not measured again, so that tasks can be run in any order or at once.
"""

import argparse
import math
import re
from datetime import date
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from reprbasis_circuits.edges import edge_faithfulness
from reprbasis_circuits.evaluation import Judge, fill_of
from reprbasis_circuits.frontier import RANDOM, Frontier

import reprbasis as rb
from reprbasis.interfaces.evaluator import Findings

SITES = "resid.2::4"
TASKS = {"sva": {"use": "sva", "set": "nounpp"},
         "ioi": {"use": "ioi", "order": "baba", "templates": [0]},
         "induction": {"use": "induction", "words": 4, "repeated": 1}}
COSTS = {"sva": [0.03, 0.07, 0.15, 0.35], "ioi": [0.004, 0.015, 0.04, 0.12], "induction": [0.001, 0.003, 0.01, 0.03]}
PATH = {"steps": 4, "rows": 96}
SCORERS = ["attribution", {"use": "ig", **PATH}, {"use": "iterative-ig", **PATH, "rounds": 4, "nodes": 10, "path": "joint"}, "magnitude"]
COLORS = {"mask": "#c0392b", "ig": "#2471a3", "iterative-ig": "#7d3c98", "attribution": "#1e8449", "magnitude": "#b9770e",
          RANDOM: "#7f8c8d"}
MEASURES = {"faithfulness": "faithfulness of the circuit", "without_errors": "the same without its error nodes"}


def config_of(name, args):
    """Options of the frontier of a task."""
    mask = {"use": "mask", "costs": COSTS[name], "steps": args.steps, "inner": args.inner, "rows": args.rows}
    more = {"repeats": 1, "halves": True} if name == "sva" else {}  # the cheapest task
    return rb.create("step", "frontier", task=TASKS[name], sites=SITES, finders=[mask], scorers=SCORERS, prompts=args.prompts,
                     held_out=args.held_out, batch=8, seeds=args.seeds, random=2, **more).config


def measured(name, args):
    """All numbers of a task: what is there already, or else from the model."""
    done = sorted(args.parts.glob(f"{name}-{args.basis.name}-{args.prompts}-{args.held_out}-*"), key=lambda p: int(p.name[-1]))
    if done and (int(done[-1].name[-1]) >= args.seeds or args.show):
        return rb.load(done[-1])
    if args.show:
        return None
    model, metric = rb.create("model", "llama", checkpoint=args.checkpoint), rb.create("metric", "logit-diff")
    basis, task, config = rb.load(args.basis), rb.registry().build(config_of(name, args).task), config_of(name, args)
    test = rb.batches(model, task, split="test", n=args.held_out, batch=config.batch)
    made = Frontier(config, rb.registry(), model, basis, metric, test, tell=lambda line: print(f"{name}: {line}", flush=True))
    extra = Findings()
    for seed in range(args.seeds):
        train = rb.batches(model, task, n=args.prompts, batch=config.batch, seed=seed)
        made.add(train)
        if not seed:
            extra = closer(made, model, basis, train, test, metric, args)
        found = made.findings() + extra
        rb.save(found, args.parts / f"{name}-{args.basis.name}-{args.prompts}-{args.held_out}-{seed + 1}")
    return found


def closer(made, model, basis, train, test, metric, args):
    """One circuit of the first seed, the smallest with a faithfulness of 0.7: its edges, random subsets, and nodes that idle."""
    curve = made.curves[0]
    good = [key for key, j in curve.points["mask"].items() if curve.scale.share(j.found.value).value >= 0.7]
    key = min(good or curve.family, key=lambda k: (1 if good else -1) * curve.family[k].size())
    circuit = curve.family[key]
    judge = Judge(model, basis, circuit.setup, test, metric, fill=fill_of(circuit))
    label = f"{circuit.size()} nodes"
    rows = [*judge.subsets(circuit, label, draws=6), *judge.minimality(circuit, label)[0]]
    edges = edge_faithfulness(judge, circuit, train[:1], [10, 30, 100], label)[0] if circuit.size() <= args.edges else []
    return Findings([*rows, *edges])


def told(m, digits=2):
    """A value and its interval."""
    if m is None:
        return ""
    if m.low is None:
        return f"{m.value:.{digits}f}"
    return f"{m.value:.{digits}f} [{m.low:.{digits}f}, {m.high:.{digits}f}]"


def table(head, rows):
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def lines_of(name, found):
    """The section of a task."""
    get = {(m.name, m.condition, m.site): m for m in found.measurements}
    sizes = sorted({int(m.site.split()[0]) for m in found.measurements if m.name == "faithfulness" and m.site})
    methods = list(dict.fromkeys(m.condition for m in found.measurements if m.name == "faithfulness" and m.site))
    at = {s: f"{s} nodes" for s in sizes}
    own = [s for s in sizes if ("faithfulness", "mask", at[s]) in get]
    model = found.values["model"]
    options = ", ".join(f"{k} {v}" for k, v in TASKS[name].items() if k != "use")
    out = [f"## {name} ({options})", "",
           f"The unchanged model prefers the right answer on {int((model > 0).sum())} of {len(model)} held-out prompts.", "",
           *[f"- {n}" for n in found.notes], "",
           "Raw: " + "; ".join(f"F({k}) = {told(get['F', k, None])}" for k in ("model", "all nodes", "basis", "empty"))
           + f". Faithfulness of all latents with every error ablated: {told(get['faithfulness', 'basis', None])}.", "",
           "Faithfulness, and below each row how it differs between seeds (least to most):", ""]
    rows = []
    for s in own:
        rows.append([str(s), *(told(get.get(("faithfulness", m, at[s]))) for m in methods)])
        if ("faithfulness_least", "mask", at[s]) in get:
            rows.append(["", *(" to ".join(f"{get[f'faithfulness_{k}', m, at[s]].value:.2f}" for k in ("least", "most"))
                               if (("faithfulness_least", m, at[s]) in get) else "" for m in methods)])
    out += [table(["nodes", *methods], rows), "", "Lead of `mask` at equal size (difference of faithfulness, paired by prompt):", "",
            table(["nodes", *(m for m in methods if m != "mask")],
                  [[str(s), *(told(get.get(("lead", f"mask over {m}", at[s]))) for m in methods if m != "mask")] for s in own]), ""]
    columns = ("error_nodes", "latents", "F", "without_errors", "completeness", "faithfulness_basis", "faithfulness_model",
               "difference", "correlation", "same_choice", "same_top_token", "kl")
    out += ["The circuits of `mask`: how many error nodes; F(C); faithfulness without the error nodes; completeness (0 is best); the "
            "two other ratios; and prompt by prompt: mean |F(C) - F(M)|, correlation, same choice, same likeliest token, KL in nats.",
            "", table(["nodes", *columns], [[str(s), *(told(get.get((c, "mask", at[s]))) if c not in ("error_nodes", "latents") else
                                                     f"{get[c, 'mask', at[s]].value:.0f}" for c in columns)] for s in own]), "",
            "Without their error nodes, the circuits of the others:", "",
            table(["nodes", *methods], [[str(s), *(told(get.get(("without_errors", m, at[s]))) for m in methods)] for s in own]), "",
            "Areas (CPR: higher is better; CMD: 0 is best), over the share of nodes and over its logarithm:", "",
            table(["method", "CPR", "CMD", "log CPR", "log CMD"],
                  [[m, *(f"{get[k, m, None].value:.3f}" for k in ("cpr", "cmd", "log_cpr", "log_cmd"))] for m in methods]), ""]
    stable = [m for m in found.measurements if m.name.startswith("iou_") and m.condition == "mask"]
    kinds = [k for k in ("iou_seeds", "iou_orders", "iou_halves") if any(m.name == k for m in stable)]
    places = list(dict.fromkeys(m.site for m in stable if m.name == kinds[0])) if kinds else []
    if kinds:
        price = {p.split(",")[0]: p for p in places}
        cells = []
        for cost in price:
            cell = [cost]
            for kind in kinds:
                for who in ("mask", RANDOM):
                    hit = [m for m in found.measurements if m.name == kind and m.condition == who and str(m.site).startswith(cost + ",")]
                    cell.append(f"{hit[0].value:.2f}" + (f" ({hit[0].site.split('about ')[1]})" if who == "mask" else "") if hit else "")
            cells.append(cell)
        nested = get.get(("nesting", "mask", None))
        out += ["Stability: IoU of circuits found at the same price with other prompts and seed (`seeds`), with the same prompts in "
                "another order and other noise (`orders`), on two halves of the prompts (`halves`), beside random circuits as large."
                + (f" Mean containment of smaller circuits in larger ones: {nested.value:.2f}." if nested else ""), "",
                table(["price", *(h for k in kinds for h in (k[4:], "chance"))], cells), ""]
    near = [m for m in found.measurements if m.name in ("subset_gap", "subset_slope", "idle_nodes")]
    if near:
        said = {m.name: m.value for m in near}
        edges = [m for m in found.measurements if m.name == "edge_faithfulness"]
        out += [f"One circuit closer ({near[0].condition}, first seed): removing random subsets from it and from the whole model differs "
                f"by {said['subset_gap']:.2f} of F(M) - F(empty) on average (slope {said['subset_slope']:.2f}); "
                f"{said['idle_nodes']:.0%} of its nodes change the metric by less than 1 % of it when removed alone.", ""]
        if edges:
            out += ["Faithfulness when later latents are computed from earlier ones along the strongest edges alone (error nodes as they "
                    "are):", "", table(["edges", "faithfulness"], [[m.condition.split(", ")[1], told(m)] for m in edges]), ""]
    return out


def plot(parts, path):
    """Frontiers of all tasks as SVG: nodes on a log axis, intervals as bars."""
    wide, high, left, top, gap = 300, 210, 52, 34, 62
    names = list(parts)
    out = []
    for row, (measure, label) in enumerate(MEASURES.items()):
        for column, name in enumerate(names):
            found = [m for m in parts[name].measurements if m.name == measure and m.site and m.condition in COLORS]
            series = {c: sorted((int(m.site.split()[0]), m) for m in found if m.condition == c) for c in COLORS}
            xs = [math.log(x) for pairs in series.values() for x, _ in pairs]
            low, most = min(-0.1, *(max(m.value, -0.5) for m in found)), max(1.1, *(min(m.value, 1.6) for m in found))
            x0, y0 = left + column * (wide + gap), top + row * (high + gap)

            def place(x, y, x0=x0, y0=y0, xs=xs, low=low, most=most):
                span = max(max(xs) - min(xs), 1e-9)
                return (x0 + (math.log(x) - min(xs)) / span * wide,
                        y0 + high - (min(max(y, low), most) - low) / (most - low) * high)

            out.append(f'<text x="{x0 + wide / 2}" y="{y0 - 10}" text-anchor="middle" font-weight="bold">{escape(name)}: '
                       f'{escape(label)}</text><rect x="{x0}" y="{y0}" width="{wide}" height="{high}" fill="none" stroke="#bbb"/>')
            for tick in (0, 0.25, 0.5, 0.75, 1):
                y = place(math.exp(xs[0]), tick)[1]
                out.append(f'<line x1="{x0}" x2="{x0 + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="{"#999" if tick in (0, 1) else "#eee"}"/>'
                           f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
            for tick in sorted({x for x, _ in series["mask"]}):
                x = place(tick, 0)[0]
                out.append(f'<text x="{x:.1f}" y="{y0 + high + 15}" text-anchor="middle">{tick}</text>')
            out.append(f'<text x="{x0 + wide / 2}" y="{y0 + high + 31}" text-anchor="middle" fill="#666">nodes in the circuit</text>')
            for method, pairs in series.items():
                color, width = COLORS[method], 2.4 if method == "mask" else 1.4
                points = [place(x, m.value) for x, m in pairs]
                line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="{width}"/>')
                for (x, y), (size, m) in zip(points, pairs, strict=True):
                    bar = ""
                    if m.low is not None:
                        (_, y1), (_, y2) = place(size, m.low), place(size, m.high)
                        bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-opacity=".4"/>'
                    out.append(f'{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>')
    y = top + 2 * (high + gap) + 2
    for i, (method, color) in enumerate(COLORS.items()):
        x = left + i * 130
        out.append(f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2.4"/>'
                   f'<text x="{x + 28}" y="{y + 4}">{escape(method)}</text>')
    width = left + len(names) * (wide + gap)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 20}" font-family="sans-serif" font-size="11">'
                    f'<rect width="100%" height="100%" fill="white"/>{"".join(out)}</svg>\n', "utf-8")


def main():
    """Measure, or take what is there; write the page and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("basis", type=Path)
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--inner", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--edges", type=int, default=60, help="largest circuit whose edges are measured")
    parser.add_argument("--parts", type=Path, default=Path("runs/circuits"))
    parser.add_argument("--show", action="store_true", help="write the page from what is there, measure nothing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    parts = {name: found for name in args.tasks if (found := measured(name, args)) is not None}
    if args.out is None:
        return
    drawing = args.out.with_suffix(".svg")
    plot(parts, drawing)
    notes = args.out.with_suffix(".notes.md")
    comment = notes.read_text("utf-8").strip() + "\n\n" if notes.is_file() else ""
    body = "\n".join(line for name, found in parts.items() for line in lines_of(name, found))
    basis = re.sub(r"-[0-9a-f]{6,}$", "-*", args.basis.name)
    text = HEAD.format(basis=basis, date=date.today(), model=args.checkpoint, sites=SITES, plot=drawing.name, comment=comment,
                       prompts=args.prompts, held=args.held_out, steps=args.steps, inner=args.inner, seeds=args.seeds) + body
    args.out.write_text(text.rstrip() + "\n", "utf-8")
    print(args.out)


HEAD = """# Circuits: learned masks against scorers and controls

Command: `python examples/circuits.py runs/quickstart/{basis} --out docs/results/circuits.md`. Date: {date}. Model: {model}; basis: the
dictionary of the quickstart (shared by all 92 sites) at `{sites}`. Seeds: {seeds} (other training prompts, other order and noise).

A node is a latent or the reconstruction error of one site and token position. Nodes outside a circuit take their mean over the
corrupted prompts. Error nodes are nodes like others, and can be chosen by every method. Faithfulness is
(F(C) - F(empty)) / (F(M) - F(empty)) with F the mean logit difference on held-out prompts and M the **unchanged model**; "F(basis)" is
the model with all latents on and every error ablated. Circuits are found on {prompts} prompts (split `train`) and judged on {held}
others (split `test`, which shares no slot value with `train`). `mask`: {steps} steps, the model run at every {inner}th. All methods
are compared at the sizes that `mask` finds. `ig`: 4 midpoints, baseline the mean; `iterative-ig`: 4 rounds, all sites on one path;
`random nodes`: mean of 2 draws a seed. Intervals: 95 % bootstrap over held-out prompts of the mean over seeds.

![Frontiers]({plot})

{comment}"""


if __name__ == "__main__":
    main()
