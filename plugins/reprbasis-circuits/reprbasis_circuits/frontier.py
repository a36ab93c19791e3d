"""Faithfulness against size: circuits of all finders, top nodes of scorers, and random nodes, on the same held-out prompts.

All circuits of a frontier have one setup, so that a node means the same for each of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reprbasis.config import Selection
from reprbasis.errors import UserError
from reprbasis.interfaces.evaluator import Figure, Findings, Measurement
from reprbasis.interfaces.finder import Circuit, CircuitFinder
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import FrontierConfig, NodesConfig, ThresholdConfig
from .evaluation import FRACTIONS, Judge, areas, at, fill_of, interpolated, nesting, random_like, row
from .nodes import Nodes, circuit, prepare
from .threshold import ThresholdFinder

RANDOM = "random nodes"


@dataclass
class Frontier:
    """One frontier in the making.

    Args:
        config: of the step.
        registry: builds finders and scorers.
        model, basis, metric: what circuits are of.
        train, test: prompts to find them on, and to judge them on.
        tell: called with a line on what is being done.
    """

    config: FrontierConfig
    registry: Registry
    model: ModelAdapter[Any]
    basis: Basis
    metric: Metric[Any]
    train: Sequence[ContrastBatch]
    test: Sequence[ContrastBatch]
    seed: int = 0
    tell: Callable[[str], None] = lambda line: None
    families: dict[str, list[Circuit]] = field(default_factory=dict)

    def findings(self) -> Findings:
        """Search, judge, compare."""
        self.search()
        lead = next(iter(self.families))
        runner = prepare(self.nodes(), self.model, self.basis, self.train, self.metric)
        nodes = Nodes.of(runner)
        candidates, pool = len(nodes), circuit(runner, nodes, torch.ones(len(nodes), dtype=torch.bool), {}).masks
        judge = Judge(self.model, self.basis, self.setup, self.test, self.metric, fill=fill_of(self.families[lead][0]),
                      resamples=self.config.resamples, seed=self.seed)
        rows = judge.ends_measured()
        values: dict[str, dict[int, Tensor]] = {}
        for name, family in self.families.items():
            self.tell(f"judge {name}")
            found, value = judge.circuits(family, name, sized=True)
            rows += found
            values[name] = {c.size(): v for c, v in zip(family, value, strict=True)}
        values[RANDOM] = self.random(judge, pool)
        for size, value in values[RANDOM].items():
            rows += [row("F", judge.mean(value), RANDOM, "metric", size=size),
                     row("faithfulness", judge.share(value), RANDOM, size=size)]
        rows += self.leads(judge, values) + self.areas(judge, values, candidates) + self.stability(pool)
        return Findings(rows, self.figures(judge, values, rows), [], self.notes(judge, candidates, rows))

    # -- finding -------------------------------------------------------------------------------------------------------

    def nodes(self) -> NodesConfig:
        """What a node is, for every finder and scorer."""
        return NodesConfig(**{name: getattr(self.config, name) for name in NodesConfig.model_fields})

    def aligned(self, selection: Selection, **more: Any) -> Any:
        """The component with the frontier's options of nodes, and others, where it has them."""
        wanted = {**{name: getattr(self.config, name) for name in NodesConfig.model_fields}, **more}
        known = {k: v for k, v in wanted.items() if k in type(selection.config).model_fields}
        config = selection.config.model_copy(update=known)
        return self.registry.build(Selection(selection.kind, selection.name, config, selection.provides))

    def search(self) -> None:
        """Families of all finders and scorers."""
        for selection in self.config.finders:
            name = selection.name.rpartition("/")[2]
            self.tell(f"find with {name}")
            sizes = {"sizes": self.sizes} if self.families else {}
            finder: CircuitFinder[Any] = self.aligned(selection, **sizes)
            family = finder.family(self.model, self.basis, self.train, self.metric)
            self.families[_free(name, self.families)] = _distinct(family)
        lead = next(iter(self.families.values()))
        if not lead:
            raise UserError("the first finder found only empty circuits", do="let it find larger ones (mask: lower costs)")
        setups = {c.setup for family in self.families.values() for c in family}
        if len(setups) > 1:
            raise UserError("the finders do not share what a node is", do="use finders with options sites, error, index ...")
        self.setup = setups.pop()
        options = {**self.nodes().model_dump(), "protect": self.setup.protect, "sizes": self.sizes}
        for selection in self.config.scorers:
            name = selection.name.rpartition("/")[2]
            self.tell(f"score with {name}")
            scorer = self.aligned(selection, baseline=self.setup.ablation, protect=self.setup.protect)
            scores = scorer.score(self.model, self.basis.at(self.setup.sites), self.train, self.metric)
            top = ThresholdFinder(ThresholdConfig(**options))
            family = top.family(self.model, self.basis, self.train, self.metric, scores=scores)
            self.families[_free(name, self.families)] = _distinct(family)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the first family."""
        return tuple(c.size() for c in next(iter(self.families.values())))

    def random(self, judge: Judge, pool: Mapping[Site, Tensor]) -> dict[int, Tensor]:
        """F of every prompt, mean over several draws at each size."""
        lead = next(iter(self.families.values()))
        out = {}
        for found in lead:
            drawn = [random_like(found, pool, self.seed + i) for i in range(self.config.random)]
            out[found.size()] = judge.run(judge.runner.dense(drawn)).value.mean(0)
        return out

    # -- comparing -----------------------------------------------------------------------------------------------------

    def leads(self, judge: Judge, values: dict[str, dict[int, Tensor]]) -> list[Measurement]:
        """How much more faithful the first family is than each other one at the same size; paired by prompt."""
        lead, *others = values
        span = judge.model - judge.empty
        return [row("lead", judge.ratio(ours - values[other][size], span), f"{lead} over {other}", size=size)
                for other in others for size, ours in values[lead].items() if size in values[other]]

    def areas(self, judge: Judge, values: dict[str, dict[int, Tensor]], candidates: int) -> list[Measurement]:
        """CPR and CMD of every family."""
        span = float((judge.model - judge.empty).mean())
        out = []
        for name, family in values.items():
            points = {size / candidates: float((v - judge.empty).mean()) / span for size, v in family.items()}
            points |= {0.0: 0.0, 1.0: float((judge.whole - judge.empty).mean()) / span}
            out += [Measurement(key, v, judge.n, condition=name) for key, v in areas(FRACTIONS, interpolated(points)).items()]
        return out

    def stability(self, pool: Mapping[Site, Tensor]) -> list[Measurement]:
        """IoU and nesting of the first finder's circuits; over seeds, and over halves of the prompts, at equal options."""
        name, family = next(iter(self.families.items()))
        out = []
        if math.isfinite(nested := nesting(family)):
            out.append(Measurement("nesting", nested, len(family), condition=name))
        others: dict[str, list[list[Circuit]]] = {}
        selection = self.config.finders[0]

        def again(prompts: Sequence[ContrastBatch], **options: Any) -> list[Circuit]:
            found: list[Circuit] = self.aligned(selection, **options).family(self.model, self.basis, prompts, self.metric)
            return found

        if "seed" in type(selection.config).model_fields:
            base = selection.config.seed  # type: ignore[attr-defined]
            others["seeds"] = [again(self.train, seed=base + 1 + i) for i in range(self.config.repeats)]
        if self.config.halves and len(self.train) > 1:
            cut = len(self.train) // 2
            others["halves"] = [again(self.train[:cut]), again(self.train[cut:])]
        for kind, found in others.items():
            tables = [_by_option(f) for f in (found if kind == "halves" else [family, *found])]
            for key in tables[0] if tables else ():
                group = [t[key] for t in tables if key in t]
                pairs = [a.iou(b) for i, a in enumerate(group) for b in group[i + 1:]]
                if not pairs:
                    continue
                size = round(sum(c.size() for c in group) / len(group))
                chance = [random_like(group[0], pool, i).iou(random_like(group[-1], pool, 1000 + i)) for i in range(5)]
                about = f"{key}, about {size} nodes"
                out += [Measurement(f"iou_{kind}", sum(pairs) / len(pairs), len(pairs), condition=name, site=about),
                        Measurement(f"iou_{kind}", sum(chance) / 5, 5, condition=RANDOM, site=about)]
        return out

    # -- showing -------------------------------------------------------------------------------------------------------

    def figures(self, judge: Judge, values: dict[str, dict[int, Tensor]], rows: Sequence[Measurement]) -> list[Figure]:
        """The frontier, and the same with the circuits' error nodes ablated, and completeness."""
        sizes = sorted({size for family in values.values() for size in family})
        what = {"token": "token position", "role": "role", "shared": "latent, whatever the position,"}[self.setup.index]
        about = (f"Nodes at {len(self.setup.sites)} sites, one for each {what} on the same axis for all methods; "
                 f"{judge.n} held-out prompts. ")
        known = {(m.name, m.condition, m.site): m.value for m in rows}

        def line(name: str, title: str, caption: str, label: str) -> Figure | None:
            series = {method: [known.get((name, method, at(s))) for s in sizes] for method in values}
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

    def notes(self, judge: Judge, candidates: int, rows: Sequence[Measurement]) -> list[str]:
        """What was done, and what came out, in words."""
        get = {(m.name, m.condition, m.site): m.value for m in rows}
        raw = ", ".join(f"F({k}) {get['F', k, None]:.3f}" for k in ("model", "basis", "empty"))
        lead, family = next(iter(self.families.items()))
        value = {c.size(): get["faithfulness", lead, at(c.size())] for c in family}
        out = [f"{candidates} candidate nodes at {', '.join(map(str, self.setup.sites))}; ablation: {self.setup.ablation}; "
               f"error: {self.setup.error}; the first {self.setup.protect} tokens are left alone. {raw}."]
        good = [c for c in family if value[c.size()] >= 0.9]
        if good:
            bare = get.get(("without_errors", lead, at(good[0].size())))
            out.append(f"{good[0].size()} nodes found by {lead} ({good[0].stats()['errors']} of them error nodes) reach a "
                       f"faithfulness of {value[good[0].size()]:.2f}"
                       + (f"; without the error nodes {bare:.2f}." if bare is not None else "."))
        else:
            best = max(value, key=lambda size: value[size])
            out.append(f"No circuit of {lead} reaches a faithfulness of 0.9; the best has {best} nodes and {value[best]:.2f}.")
        return out


def _distinct(family: Sequence[Circuit]) -> list[Circuit]:
    """Without empty circuits and repeated sizes, smallest first."""
    return [c for _, c in sorted({c.size(): c for c in family if c.size()}.items())]


def _by_option(family: Sequence[Circuit]) -> dict[str, Circuit]:
    """Circuits by what they were asked for: their cost, or else their place in the family."""
    return {f"cost {c.details['cost']:g}" if "cost" in c.details else f"#{i}": c for i, c in enumerate(family)}


def _free(name: str, taken: Any) -> str:
    number = 2
    while name in taken and f"{name} ({number})" in taken:
        number += 1
    return name if name not in taken else f"{name} ({number})"
