"""Faithfulness against size: circuits of all finders, top nodes of scorers, and random nodes, on the same held-out prompts.

All circuits of a frontier have one setup, so that a node means the same for each of them. The search can be repeated with other
prompts and another seed; every repetition is judged on the same held-out prompts.

Shapes: N held-out prompts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reprbasis.config import Selection
from reprbasis.errors import UserError
from reprbasis.interfaces.evaluator import Figure, Findings, Measurement
from reprbasis.interfaces.finder import Circuit, CircuitFinder, Setup
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.kits.circuits import fill_of
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis

from .config import FrontierConfig, NodesConfig, ThresholdConfig
from .curve import Curve
from .evaluation import Judge, Judged, Masks, Outcome, Scale, areas_of, at, nesting, random_like, row
from .nodes import Nodes, circuit, prepare
from .threshold import ThresholdFinder

RANDOM = "random nodes"


@dataclass
class Frontier:
    """One frontier in the making: `add` repetitions, then `findings`.

    Args:
        config: of the step.
        registry: builds finders and scorers.
        model, basis, metric: what circuits are of.
        test: prompts to judge circuits on.
        seed: of the bootstrap.
        tell: called with a line on what is being done.
    """

    config: FrontierConfig
    registry: Registry
    model: ModelAdapter[Any]
    basis: Basis
    metric: Metric[Any]
    test: Sequence[ContrastBatch]
    seed: int = 0
    tell: Callable[[str], None] = lambda line: None
    curves: list[Curve] = field(default_factory=list)

    def add(self, train: Sequence[ContrastBatch], repetition: int = 0) -> Curve:
        """Search on `train` and judge on the held-out prompts; repetition i adds i to the seeds of finders and scorers.

        Raises:
            UserError: the first finder finds nothing, or the finders do not share what a node is.
        """
        families, setup = self._search(train, repetition)
        first = next(iter(families.values()))
        runner = prepare(self.nodes(), self.model, self.basis, train, self.metric)
        nodes = Nodes.of(runner)
        pool = dict(circuit(runner, nodes, torch.ones(len(nodes), dtype=torch.bool), {}).masks)
        judge = Judge(self.model, self.basis, setup, self.test, self.metric, fill=fill_of(next(iter(first.values()))),
                      resamples=self.config.resamples, seed=self.seed)
        points: dict[str, dict[str, Judged]] = {}
        for name, family in families.items():
            self.tell(f"judge {name}")
            own = any(c.details["finder"] != "threshold" for c in family.values())  # of scorers' top nodes it is not asked
            points[name] = dict(zip(family, judge.judge(list(family.values()), rest=own), strict=True))
        self.tell(f"judge {RANDOM}")
        points[RANDOM] = {key: self._random(judge, found, pool, repetition) for key, found in first.items()}
        again = {} if repetition else self._repeat(train, first)
        self.curves.append(Curve(setup, judge.scale, points, first, pool, again))
        return self.curves[-1]

    def findings(self) -> Findings:
        """All repetitions together: intervals over prompts of the mean over repetitions."""
        scale = Scale.joined([c.scale for c in self.curves])
        points = self._joined()
        rows = scale.ends_measured()
        for name, family in points.items():
            for judged in family.values():
                rows += _sized(scale.measured(judged, name), judged)
            rows += self._spread(name)
        rows += self._leads(scale) + self._areas() + self._stability()
        values = {f"{name} {key}": torch.stack([c.points[name][key].found.value for c in self.curves])
                  for name, family in points.items() for key in family}
        values["model"] = self.curves[0].scale.model
        return Findings(rows, self._figures(scale, points, rows), [], self._notes(scale, points, rows), values)

    # -- finding -------------------------------------------------------------------------------------------------------

    def nodes(self) -> NodesConfig:
        """What a node is, for every finder and scorer."""
        return NodesConfig(**{name: getattr(self.config, name) for name in NodesConfig.model_fields})

    def _aligned(self, selection: Selection, shift: int = 0, **more: Any) -> Any:
        """The component with the frontier's options of nodes, and others, where it has them."""
        wanted = {**{name: getattr(self.config, name) for name in NodesConfig.model_fields}, **more}
        known = {k: v for k, v in wanted.items() if k in type(selection.config).model_fields}
        if "seed" in type(selection.config).model_fields:
            known["seed"] = selection.config.seed + shift  # type: ignore[attr-defined]
        config = selection.config.model_copy(update=known)
        return self.registry.build(Selection(selection.kind, selection.name, config, selection.provides))

    def _search(self, train: Sequence[ContrastBatch], shift: int) -> tuple[dict[str, dict[str, Circuit]], Setup]:
        """Families of all finders and scorers."""
        families: dict[str, dict[str, Circuit]] = {}
        sizes: dict[str, int] = {}
        for selection in self.config.finders:
            name = _free(selection.name.rpartition("/")[2], families)
            self.tell(f"find with {name}")
            more = {"sizes": tuple(sizes.values())} if sizes else {}
            finder: CircuitFinder[Any] = self._aligned(selection, shift, **more)
            family = finder.family(self.model, self.basis, train, self.metric)
            families[name] = _matched(family, sizes) or _by_option(family)
            sizes = sizes or {key: c.size() for key, c in families[name].items()}
        if not sizes:
            raise UserError("the first finder found only empty circuits", do="let it find larger ones (mask: lower costs)")
        setups = {c.setup for family in families.values() for c in family.values()}
        if len(setups) > 1:
            raise UserError("the finders do not share what a node is", do="use finders with options sites, error, index ...")
        setup = setups.pop()
        options = {**self.nodes().model_dump(), "protect": setup.protect, "sizes": tuple(sizes.values())}
        for selection in self.config.scorers:
            name = _free(selection.name.rpartition("/")[2], families)
            self.tell(f"score with {name}")
            scorer = self._aligned(selection, shift, baseline=setup.ablation, protect=setup.protect)
            scores = scorer.score(self.model, self.basis.at(setup.sites), train, self.metric)
            top = ThresholdFinder(ThresholdConfig(**options))
            families[name] = _matched(top.family(self.model, self.basis, train, self.metric, scores=scores), sizes)
        return families, setup

    def _random(self, judge: Judge, like: Circuit, pool: Masks, shift: int) -> Judged:
        """As many random nodes: means over several draws."""
        drawn = [random_like(like, pool, self.seed + 1000 * shift + i) for i in range(self.config.random)]
        found = judge.judge(drawn, rest=False, bare=False)
        outcome = Outcome(*(torch.stack([getattr(j.found, k) for j in found]).mean(0) for k in ("value", "kl", "top")))
        return Judged(*(sum(getattr(j, k) for j in found) / len(found) for k in ("nodes", "errors", "latents")), outcome)

    def _repeat(self, train: Sequence[ContrastBatch], first: Mapping[str, Circuit]) -> dict[str, list[Mapping[str, Circuit]]]:
        """Search again with the first finder: in other orders, and on each half of the prompts."""
        selection = self.config.finders[0]
        out: dict[str, list[Mapping[str, Circuit]]] = {}

        def again(prompts: Sequence[ContrastBatch], shift: int = 0) -> dict[str, Circuit]:
            found = self._aligned(selection, shift).family(self.model, self.basis, prompts, self.metric)
            return _by_option(found)

        if self.config.repeats and "seed" in type(selection.config).model_fields:
            self.tell("search in other orders")
            out["orders"] = [first, *(again(train, 10_000 + i) for i in range(self.config.repeats))]
        if self.config.halves and len(train) > 1:
            self.tell("search on halves of the prompts")
            cut = len(train) // 2
            out["halves"] = [again(train[:cut]), again(train[cut:])]
        return out

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _joined(self) -> dict[str, dict[str, Judged]]:
        """Method -> what was asked for -> all repetitions side by side, smallest first; of equal mean sizes the last."""
        out = {}
        for name, family in self.curves[0].points.items():
            keys = [key for key in family if all(key in c.points[name] for c in self.curves)]
            found = {key: Judged.joined([c.points[name][key] for c in self.curves]) for key in keys}
            sizes = {round(j.nodes): key for key, j in found.items() if j.nodes}
            out[name] = {sizes[size]: found[sizes[size]] for size in sorted(sizes)}
        return out

    def _spread(self, name: str) -> list[Measurement]:
        """Least and largest faithfulness of the repetitions."""
        if len(self.curves) < 2:
            return []
        out = []
        for key, judged in self._joined()[name].items():
            each = [c.scale.share(c.points[name][key].found.value).value for c in self.curves]
            out += _sized([Measurement(f"faithfulness_{what}", v, len(each), condition=name)
                           for what, v in (("least", min(each)), ("most", max(each)))], judged)
        return out

    def _leads(self, scale: Scale) -> list[Measurement]:
        """How much more faithful the first family is than each other one at equal size, and how much closer its values are to the
        unchanged model's, prompt by prompt (above a faithfulness of 1 more is not better); both as shares of F(M) - F(empty).
        """
        points = self._joined()
        first, *others = points
        out = []
        for other in others:
            for key, ours in points[first].items():
                pairs = [(c.points[first][key], c.points[other].get(key)) for c in self.curves]
                if all(b is not None and a.nodes == b.nodes for a, b in pairs):
                    theirs = torch.cat([c.points[other][key].found.value for c in self.curves])
                    span, name = scale.model - scale.empty, f"{first} over {other}"
                    closer = (theirs - scale.model).abs() - (ours.found.value - scale.model).abs()
                    out += _sized([row("lead", scale.ratio(ours.found.value - theirs, span), name),
                                   row("closer", scale.ratio(closer, span), name)], ours)
        return out

    def _areas(self) -> list[Measurement]:
        """CPR and CMD of every method, mean over repetitions."""
        out = []
        for name in self.curves[0].points:
            each = []
            for c in self.curves:
                points = {j.nodes / c.candidates: c.scale.share(j.found.value).value for j in c.points[name].values()}
                points |= {0.0: 0.0, 1.0: c.scale.share(c.scale.whole).value}
                each.append(areas_of(points))
            n = self.curves[0].scale.n
            out += [Measurement(key, sum(e[key] for e in each) / len(each), n, condition=name) for key in each[0]]
        return out

    def _stability(self) -> list[Measurement]:
        """Nesting of the first method's circuits, and IoU of those found again at equal options; beside random ones as large."""
        name = next(iter(self.curves[0].points))
        first = self.curves[0]
        out = []
        if math.isfinite(nested := nesting(sorted(first.family.values(), key=Circuit.size))):
            out.append(Measurement("nesting", nested, len(first.family), condition=name))
        seeds = {"seeds": [c.family for c in self.curves]} if len(self.curves) > 1 else {}
        for kind, found in {**seeds, **first.again}.items():
            for key in first.family:
                group = [f[key] for f in found if key in f]
                pairs = [a.iou(b) for i, a in enumerate(group) for b in group[i + 1:]]
                if not pairs:
                    continue
                size = round(sum(c.size() for c in group) / len(group))
                drawn = [[random_like(c, first.pool, i + d) for c, d in ((group[0], 0), (group[-1], 1000))] for i in range(5)]
                chance = [a.iou(b) for a, b in drawn]
                about = f"{key}, about {size} nodes"
                out += [Measurement(f"iou_{kind}", sum(pairs) / len(pairs), len(pairs), condition=name, site=about),
                        Measurement(f"iou_{kind}", sum(chance) / 5, 5, condition=RANDOM, site=about)]
        return out

    # -- showing -------------------------------------------------------------------------------------------------------

    def _figures(self, scale: Scale, points: Mapping[str, Mapping[str, Judged]], rows: Sequence[Measurement]) -> list[Figure]:
        """The frontier, and the same with the circuits' error nodes ablated, and completeness."""
        setup, n = self.curves[0].setup, self.curves[0].scale.n
        sizes = sorted({round(j.nodes) for family in points.values() for j in family.values()})
        what = {"token": "token position", "role": "role", "shared": "latent, whatever the position,"}[setup.index]
        about = (f"Nodes at {len(setup.sites)} sites, one for each {what} on the same axis for all methods; {n} held-out prompts"
                 + (f", mean over {len(self.curves)} seeds. " if len(self.curves) > 1 else ". "))
        known = {(m.name, m.condition, m.site): m.value for m in rows}

        def line(name: str, title: str, caption: str, label: str) -> Figure | None:
            series = {method: [known.get((name, method, at(s))) for s in sizes] for method in points}
            series = {k: v for k, v in series.items() if any(y is not None for y in v)}
            if not series:
                return None
            return Figure("line", title, about + caption, series, [str(s) for s in sizes], x_label="nodes in the circuit",
                          y_label=label)

        ceiling = known["faithfulness", "basis", None]
        drawn = (
            line("faithfulness", "Faithfulness against size", "1: the circuit does as well as the unchanged model; 0: as badly "
                 f"as with every node ablated. All latents without any error node reach {ceiling:.2f}.", "faithfulness"),
            line("without_errors", "The same circuits without their error nodes", "What is left once the error nodes of the "
                 "circuit are ablated: what the dictionary itself explains.", "faithfulness without errors"),
            line("completeness", "Completeness against size", "What the model still does without the circuit: 0 if the circuit "
                 "is all there is, 1 if the rest does as well.", "completeness"))
        return [f for f in drawn if f is not None]

    def _notes(self, scale: Scale, points: Mapping[str, Mapping[str, Judged]], rows: Sequence[Measurement]) -> list[str]:
        """What was done, and what came out, in words."""
        get = {(m.name, m.condition, m.site): m for m in rows}
        curve = self.curves[0]
        raw = ", ".join(f"F({k}) {get['F', k, None].value:.3f}" for k in ("model", "basis", "empty"))
        first, *others = points
        family = points[first].values()
        value = {round(j.nodes): get["faithfulness", first, at(round(j.nodes))].value for j in family}
        setup = curve.setup
        out = [f"{curve.candidates} candidate nodes at {', '.join(map(str, setup.sites))}; ablation: {setup.ablation}; error: "
               f"{setup.error}; the first {setup.protect} tokens are left alone; {len(self.curves)} "
               f"seed{'s' if len(self.curves) > 1 else ''}, {curve.scale.n} held-out prompts. {raw}."]
        good = [j for j in family if value[round(j.nodes)] >= 0.9]
        if good:
            size = round(good[0].nodes)
            bare = get.get(("without_errors", first, at(size)))
            out.append(f"{size} nodes found by {first} ({good[0].errors:.0f} of them error nodes) reach a faithfulness of "
                       f"{value[size]:.2f}" + (f"; without the error nodes {bare.value:.2f}." if bare is not None else "."))
        elif value:
            best = max(value, key=lambda size: value[size])
            out.append(f"No circuit of {first} reaches a faithfulness of 0.9; the best has {best} nodes and {value[best]:.2f}.")
        for other in others:
            leads = [m for m in rows if m.name == "lead" and m.condition == f"{first} over {other}"]
            if leads:
                sure = [m for m in leads if m.low is not None and m.low > 0]
                behind = [m for m in leads if m.value <= 0]
                out.append(f"{first} against {other}: ahead at {len(leads) - len(behind)} of {len(leads)} sizes, surely (95 % "
                           f"interval of the paired difference above 0) at {len(sure)}"
                           + (f"; not ahead at {', '.join(str(m.site) for m in behind)}." if behind else "."))
        return out


def _sized(rows: Sequence[Measurement], judged: Judged) -> list[Measurement]:
    """The measurements, told apart by the size of the circuit."""
    return [Measurement(m.name, m.value, m.n, m.low, m.high, m.condition, at(round(judged.nodes)), m.unit) for m in rows]


def _by_option(family: Sequence[Circuit]) -> dict[str, Circuit]:
    """Circuits that are not empty by what they were asked for: their cost, or else their size; smallest first."""
    found = sorted((c for c in family if c.size()), key=Circuit.size)
    return {f"cost {c.details['cost']:g}" if "cost" in c.details else f"{c.size()} nodes": c for c in found}


def _matched(family: Sequence[Circuit], sizes: Mapping[str, int]) -> dict[str, Circuit]:
    """The circuits of the first method's sizes, under its names; empty if a size is missing."""
    known = {c.size(): c for c in family}
    return {key: known[size] for key, size in sizes.items()} if set(sizes.values()) <= set(known) else {}


def _free(name: str, taken: Any) -> str:
    number = 2
    while name in taken and f"{name} ({number})" in taken:
        number += 1
    return name if name not in taken else f"{name} ({number})"
