"""Which few nodes of a dictionary carry a task: learned masks against scorers and controls, as a page with a plot.

    python examples/circuits.py runs/quickstart/basis-* --out docs/results/circuits.md [--tasks sva ioi induction]

The basis is the one that `reprbasis run examples/quickstart.yaml` trains (any other will do). What each seed of each
task gave is kept under `--parts` and not measured again, so that they can be run in any order, or at once.
"""

import argparse
import math
import re
from datetime import date
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from reprbasis_circuits.curve import Curve
from reprbasis_circuits.edges import edge_faithfulness
from reprbasis_circuits.evaluation import Judge
from reprbasis_circuits.frontier import RANDOM, Frontier

import reprbasis as rb
from reprbasis.interfaces.evaluator import Findings
from reprbasis.kits.circuits import fill_of

SITES = "resid.2::4"
TASKS = {"sva": {"use": "sva", "set": "nounpp"},
         "ioi": {"use": "ioi", "order": "baba", "templates": [0]},
         "induction": {"use": "induction", "words": 4, "repeated": 1}}
COSTS = {"sva": [0.003, 0.01, 0.04, 0.12], "ioi": [0.006, 0.03, 0.12], "induction": [0.001, 0.005, 0.02]}
PROMPTS = {"sva": (24, 48), "ioi": (16, 16), "induction": (16, 16)}  # to find circuits on, and to judge them on
INNER = {"sva": 6, "ioi": 10, "induction": 10}  # steps of the mask for each run of the model
MORE = {"sva": {"loss": "abs-batch"}, "ioi": {"repair": 0}, "induction": {"repair": 0}}  # see the page
PATH = {"steps": 4, "rows": 96}
SCORERS = ["attribution", {"use": "ig", **PATH}, {"use": "iterative-ig", **PATH, "rounds": 4, "nodes": 10, "path": "joint"},
           "magnitude"]
COLORS = {"mask": "#c0392b", "ig": "#2471a3", "iterative-ig": "#7d3c98", "attribution": "#1e8449", "magnitude": "#b9770e",
          RANDOM: "#7f8c8d"}
MEASURES = {"faithfulness": "faithfulness of the circuit", "without_errors": "the same without its error nodes"}


def config_of(name, args):
    """Options of the frontier of a task."""
    mask = {"use": "mask", "costs": COSTS[name], "steps": args.steps, "inner": INNER[name], "rows": args.rows,
            "lr": 3 / args.steps, "patience": args.steps, **MORE.get(name, {})}
    return rb.create("step", "frontier", task=TASKS[name], sites=SITES, finders=[mask], scorers=SCORERS,
                     prompts=PROMPTS[name][0], held_out=PROMPTS[name][1], batch=8, seeds=args.seeds, random=2).config


def measured(name, args):
    """All numbers of a task; each seed is measured once and kept."""
    config = config_of(name, args)
    place = args.parts / f"{name}-{args.basis.name}-{config.prompts}-{config.held_out}-{args.steps}-{INNER[name]}"
    folders = [place / str(seed) for seed in range(args.seeds)]
    made, world = Frontier(config, rb.registry(), None, None, None, []), None
    for seed, folder in enumerate(folders):
        there = (folder / "curve.json").is_file()
        if not there and (args.show or seed not in (args.only or range(args.seeds))):
            continue
        if not there:
            world = world or World(config, args)
            run = Frontier(config, rb.registry(), world.model, world.basis, world.metric, world.test,
                           tell=lambda line, seed=seed: print(f"{name}, seed {seed}: {line}", flush=True))
            train = rb.batches(world.model, world.task, n=config.prompts, batch=config.batch, seed=seed)
            curve = run.add(train, seed)
            curve.save(folder)
            if not seed and (more := closer(curve, world, train, args)):
                rb.save(more, folder / "closer")
        made.curves.append(Curve.load(folder))
    more = rb.load(folders[0] / "closer") if (folders[0] / "closer").is_dir() else Findings()
    return made.findings() + more if made.curves else None


class World:
    """What is needed to measure."""

    def __init__(self, config, args):
        self.model, self.metric = rb.create("model", "llama", checkpoint=args.checkpoint), rb.create("metric", "logit-diff")
        self.basis, self.task = rb.load(args.basis), rb.registry().build(config.task)
        self.test = rb.batches(self.model, self.task, split="test", n=config.held_out, batch=config.batch)


def closer(curve, world, train, args):
    """The smallest circuit with a faithfulness of 0.7: its edges, random subsets, idle nodes; None if it is large."""
    good = [key for key, j in curve.points["mask"].items() if curve.scale.share(j.found.value).value >= 0.7]
    circuit = min((curve.family[key] for key in good), key=lambda c: c.size(), default=None)
    if circuit is None or circuit.size() > args.most:
        return None
    judge = Judge(world.model, world.basis, circuit.setup, world.test, world.metric, fill=fill_of(circuit))
    label = f"{circuit.size()} nodes"
    edges = edge_faithfulness(judge, circuit, train[:2], [5, 6, 7, 8, 12, 20, 40], label)[0]
    return Findings([*judge.subsets(circuit, label, draws=6), *judge.minimality(circuit, label)[0], *edges])


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


class Page:
    """What was found on one task, as lines of Markdown."""

    def __init__(self, name, found):
        self.name, self.rows, self.notes, self.model = name, found.measurements, found.notes, found.values["model"]
        self.get = {(m.name, m.condition, m.site): m for m in self.rows}
        faith = [m for m in self.rows if m.name == "faithfulness" and m.site]
        self.methods = list(dict.fromkeys(m.condition for m in faith))
        self.others = [m for m in self.methods if m != "mask"]
        self.sizes = [m.site for m in faith if m.condition == "mask"]

    def cell(self, name, condition, size=None, digits=2):
        """One number."""
        return told(self.get.get((name, condition, size)), digits)

    def by_size(self, measure, methods, condition="{}"):
        """A table: sizes down, methods across."""
        rows = [[s.split()[0], *(self.cell(measure, condition.format(m), s) for m in methods)] for s in self.sizes]
        return [table(["nodes", *methods], rows), ""]

    def lines(self):
        """The section."""
        options = ", ".join(f"{k} {v}" for k, v in TASKS[self.name].items() if k != "use")
        raw = "; ".join(f"F({k}) = {self.cell('F', k)}" for k in ("model", "all nodes", "basis", "empty"))
        right = int((self.model > 0).sum())
        return [f"## {self.name} ({options})", "",
                f"The unchanged model prefers the right answer on {right} of {len(self.model)} held-out prompts.", "",
                *[f"- {n}" for n in self.notes], "",
                f"Raw: {raw}. Faithfulness of all latents with every error ablated: {self.cell('faithfulness', 'basis')}.", "",
                "Faithfulness:", "", *self.by_size("faithfulness", self.methods), *self.seeds(),
                "Lead of `mask` at equal size (difference of faithfulness, paired by prompt):", "",
                *self.by_size("lead", self.others, "mask over {}"),
                "How much closer to the unchanged model `mask` is, prompt by prompt (mean |F - F(M)| of the other less that of",
                "`mask`, as a share of F(M) - F(empty)); unlike the lead it does not reward a faithfulness above 1:", "",
                *self.by_size("closer", self.others, "mask over {}"), *self.mask(),
                "Faithfulness of the circuits once their error nodes are ablated:", "",
                *self.by_size("without_errors", [m for m in self.methods if m != RANDOM]), *self.areas(), *self.stability(),
                *self.closer()]

    def seeds(self):
        """How far the seeds lie apart."""
        if ("faithfulness_least", "mask", self.sizes[0]) not in self.get:
            return []
        rows = [[s.split()[0], *(f"{self.cell('faithfulness_least', m, s)} to {self.cell('faithfulness_most', m, s)}"
                                 for m in self.methods)] for s in self.sizes]
        return ["The same, least to most of the seeds:", "", table(["nodes", *self.methods], rows), ""]

    def mask(self):
        """More on the circuits of the mask."""
        counts = ("error_nodes", "latents")
        columns = ("F", "faithfulness_model", "faithfulness_basis", "completeness", "difference", "correlation", "same_choice",
                   "same_top_token", "kl")
        rows = [[s.split()[0], *(self.cell(c, "mask", s, 0) for c in counts), *(self.cell(c, "mask", s) for c in columns)]
                for s in self.sizes]
        return ["The circuits of `mask`: error nodes and distinct latents in them; F(C) and its two other ratios, to F(M) and to "
                "F(basis);", "completeness (0 is best); prompt by prompt: mean |F(C) - F(M)|, correlation, same choice, same "
                "likeliest token, KL in nats.", "", table(["nodes", *counts, *columns], rows), ""]

    def areas(self):
        """CPR and CMD."""
        keys = ("cpr", "cmd", "log_cpr", "log_cmd")
        rows = [[m, *(self.cell(k, m, None, 3) for k in keys)] for m in self.methods]
        return ["Areas (CPR: higher is better; CMD: 0 is best) over the share of candidate nodes, and over its logarithm:", "",
                table(["method", "CPR", "CMD", "log CPR", "log CMD"], rows), ""]

    def stability(self):
        """IoU of circuits found again."""
        kinds = [k for k in ("iou_seeds", "iou_orders", "iou_halves") if any(m.name == k for m in self.rows)]
        if not kinds:
            return []
        found = {(m.name, m.condition, m.site.split(",")[0]): m for m in self.rows if m.name in kinds}
        rows = []
        for price in dict.fromkeys(price for _, _, price in found):
            cells = []
            for kind in kinds:
                ours, chance = (found.get((kind, who, price)) for who in ("mask", RANDOM))
                about = f"{ours.value:.2f} ({ours.site.split('about ')[1]})" if ours else ""
                cells += [about, f"{chance.value:.2f}" if chance else ""]
            rows.append([price, *cells])
        told = {"seeds": "other prompts and another seed (`seeds`)", "halves": "each half of the prompts (`halves`)",
                "orders": "the same prompts in another order and other noise (`orders`)"}
        how = ", ".join(told[k[4:]] for k in kinds)
        return [f"Stability: IoU of the circuits of `mask` at equal price with {how}, beside",
                f"random circuits as large. Smaller circuits are contained in larger ones to {self.cell('nesting', 'mask')}.", "",
                table(["price", *(h for k in kinds for h in (k[4:], "chance"))], rows), ""]

    def closer(self):
        """One circuit: subsets, idle nodes, edges."""
        near = {m.name: m for m in self.rows if m.name in ("subset_gap", "subset_slope", "idle_nodes")}
        if not near:
            return []
        edges = [[m.condition.split(", ", 1)[1], told(m)] for m in self.rows if m.name == "edge_faithfulness"]
        shown = ["Faithfulness when every latent sees, of the latents at the site before, only those that it has one of the",
                 "strongest edges from (error nodes as they are; all edges: the circuit itself; no edges: what a site is when",
                 "the site before is ablated; shuffled: as many edges between each two sites, drawn at random):", "",
                 table(["edges", "faithfulness"], edges), ""]
        gap, slope, idle = (near[k].value for k in ("subset_gap", "subset_slope", "idle_nodes"))
        return [f"One circuit closer ({near['subset_gap'].condition}, first seed): F without random subsets of it differs from",
                f"what the whole model without them gives by {gap:.2f} of F(M) - F(empty) on average (slope {slope:.2f});",
                f"{idle:.0%} of its nodes change F by less than 1 % of that when removed alone.", "", *(shown if edges else [])]


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

            middle = x0 + wide / 2
            out += [text(middle, y0 - 10, f"{name}: {label}", "middle"),
                    text(middle, y0 + high + 31, "nodes in the circuit", "middle"),
                    f'<rect x="{x0}" y="{y0}" width="{wide}" height="{high}" fill="none" stroke="#bbb"/>']
            for tick in (0, 0.25, 0.5, 0.75, 1):
                y = place(math.exp(xs[0]), tick)[1]
                out.append(stroke(x0, y, x0 + wide, y, "#999" if tick in (0, 1) else "#eee"))
                out.append(text(x0 - 6, y + 4, f"{tick:g}", "end"))
            out += [text(place(tick, 0)[0], y0 + high + 15, tick, "middle") for tick in sorted({x for x, _ in series["mask"]})]
            for method, pairs in series.items():
                color, width = COLORS[method], 2.4 if method == "mask" else 1.4
                points = [place(x, m.value) for x, m in pairs]
                line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="{width}"/>')
                for (x, y), (size, m) in zip(points, pairs, strict=True):
                    if m.low is not None:
                        out.append(stroke(x, place(size, m.low)[1], x, place(size, m.high)[1], color, 'stroke-opacity=".4"'))
                    out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>')
    y = top + 2 * (high + gap) + 2
    for i, (method, color) in enumerate(COLORS.items()):
        x = left + i * 130
        out += [stroke(x, y, x + 22, y, color, 'stroke-width="2.4"'), text(x + 28, y + 4, method)]
    box = f'viewBox="0 0 {left + len(names) * (wide + gap)} {y + 20}" font-family="sans-serif" font-size="11"'
    body = f'<rect width="100%" height="100%" fill="white"/>{"".join(out)}'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{body}</svg>\n', "utf-8")


def stroke(x1, y1, x2, y2, color, more=""):
    """A line of a drawing."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" {more}/>'


def text(x, y, words, anchor="start"):
    """Words in a drawing."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(str(words))}</text>'


def main():
    """Measure, or take what is there; write the page and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("basis", type=Path)
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int, nargs="+", help="measure these seeds only (several processes can share the work)")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--most", type=int, default=40, help="largest circuit that is looked at more closely")
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
    body = "\n".join(line for name, found in parts.items() for line in Page(name, found).lines())
    basis = re.sub(r"-[0-9a-f]{6,}$", "-*", args.basis.name)
    text = HEAD.format(basis=basis, date=date.today(), model=args.checkpoint, sites=SITES, plot=drawing.name, comment=comment,
                       steps=args.steps, inner=", ".join(f"{v}th ({k})" for k, v in INNER.items())) + body
    args.out.write_text(text.rstrip() + "\n", "utf-8")
    print(args.out)


HEAD = """# Circuits: learned masks against scorers and controls

Command: `python examples/circuits.py runs/quickstart/{basis} --out docs/results/circuits.md`. Date: {date}.
Model: {model}. Basis: the dictionary of the quickstart (shared by all 92 sites) at `{sites}`.
Seeds differ in their training prompts, the order of them, and noise; how many there are is said at each task.

A node is a latent or the reconstruction error of one site and token position. Nodes outside a circuit take their mean over
the corrupted prompts. Error nodes are nodes like others; every method may choose them. Faithfulness is (F(C) - F(empty)) /
(F(M) - F(empty)), F the mean logit difference on held-out prompts, M the **unchanged model**; "F(basis)" is the model with
all latents on and every error ablated. Circuits are found on prompts of the split `train` and judged on the split `test`,
which shares no slot value (no noun, name or word) with it. `mask`: {steps} steps, the model run at every {inner}, learning
rate 3 / steps; on sva with `loss: abs-batch`, and hard masks are repaired; on the others they are not (`repair: 0`). All
methods are compared at the sizes that `mask` finds. `ig`: 4 midpoints, baseline the mean; `iterative-ig`: 4 rounds, all sites on
one path; `random nodes`: mean of 2 draws a seed among the nodes that are ever active. Intervals: 95 % bootstrap over held-out
prompts of the mean over seeds (prompts are drawn, not seeds).

![Frontiers]({plot})

{comment}"""


if __name__ == "__main__":
    main()
