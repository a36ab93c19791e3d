"""How faithful, complete and minimal circuits are, on prompts they were not found on.

With the metric m averaged over prompts, four raw numbers and three ratios:

    F(M)      the unchanged model                      faithfulness        (F(C) - F(empty)) / (F(M) - F(empty))
    F(basis)  every latent on, every error ablated     faithfulness_basis  F(C) / F(basis)
    F(C)      the circuit's nodes on, all others off   faithfulness_model  F(C) / F(M)
    F(empty)  every node off                           completeness        the first with F(M without C) for F(C); 0 is best

`faithfulness_basis` flatters: it forgives what the dictionary loses. Where errors are nodes, `without_errors` is the faithfulness
once the circuit's error nodes are ablated too. Always kept errors (`error: own`) are on in the empty circuit as well.

Sources: Marks et al. 2024 (faithfulness, completeness), Wang et al. 2022 (completeness by random subsets, minimality), Mueller et
al. 2025 (CPR, CMD). Shapes: M masks, N prompts, B prompts of a batch, V vocabulary, R rows, K latents.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reprbasis.interfaces.evaluator import Measurement
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.kits.circuits import Runner
from reprbasis.kits.intervals import Estimate, mean, ratio
from reprbasis.kits.nodes import Means
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .nodes import Nodes
from .nodes import circuit as circuit_of

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all nodes at which CPR and CMD read the faithfulness."""
Masks = dict[Site, Tensor]


@dataclass(frozen=True)
class Outcome:
    """Metric, KL from the unchanged model's next-token distribution (nats), and whether the top token agrees; all [M, N]."""

    value: Tensor
    kl: Tensor
    top: Tensor

    def __getitem__(self, index: int | slice) -> "Outcome":
        return Outcome(self.value[index], self.kl[index], self.top[index])


@dataclass(frozen=True)
class Judged:
    """A circuit on the judge's prompts.

    Args:
        nodes, errors, latents: how many: nodes, error nodes among them, distinct latents.
        found: of the circuit.
        rest: [N] the metric without it: every other node on; None if it was not looked at.
        bare: [N] the metric of the circuit without its error nodes; None where errors are not nodes.
    """

    nodes: float
    errors: float
    latents: float
    found: Outcome
    rest: Tensor | None = None
    bare: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["Judged"]) -> "Judged":
        """Circuits of several searches side by side: prompts one after the other, mean numbers of nodes."""
        counts = (sum(getattr(p, k) for p in parts) / len(parts) for k in ("nodes", "errors", "latents"))
        found = Outcome(*(torch.cat([getattr(p.found, k) for p in parts]) for k in ("value", "kl", "top")))
        rest, bare = ([t for p in parts if (t := getattr(p, k)) is not None] for k in ("rest", "bare"))
        return cls(*counts, found, torch.cat(rest) if rest else None, torch.cat(bare) if bare else None)


@dataclass
class Scale:
    """What faithfulness is measured by: the metric of every prompt, [N].

    Args:
        model: unchanged.
        basis: with all latents and no errors.
        empty: without any node.
        whole: with every node.
        group: [N] prompts with the same tokens (and images) have one number; they are drawn together.
        resamples, seed: of the bootstrap.
    """

    model: Tensor
    basis: Tensor
    empty: Tensor
    whole: Tensor
    group: Tensor
    resamples: int = 2000
    seed: int = 0

    @classmethod
    def joined(cls, parts: Sequence["Scale"]) -> "Scale":
        """The same prompts with other values of ablated nodes; a prompt is drawn with all its repetitions."""
        tensors = (torch.cat([getattr(p, k) for p in parts]) for k in ("model", "basis", "empty", "whole", "group"))
        return cls(*tensors, parts[0].resamples, parts[0].seed)

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.model)

    # -- estimates -----------------------------------------------------------------------------------------------------

    def ratio(self, top: Tensor, bottom: Tensor) -> Estimate:
        """Sum over sum, with an interval over prompts."""
        return ratio(top, bottom, self.group, resamples=self.resamples, seed=self.seed)

    def share(self, value: Tensor) -> Estimate:
        """(value - F(empty)) / (F(M) - F(empty)) for values [N]."""
        return self.ratio(value - self.empty, self.model - self.empty)

    def mean(self, value: Tensor) -> Estimate:
        """Mean of [N]."""
        return mean(value, self.group, resamples=self.resamples, seed=self.seed)

    # -- measurements --------------------------------------------------------------------------------------------------

    def ends_measured(self) -> list[Measurement]:
        """The raw numbers that do not depend on the circuit, and the faithfulness of all latents alone."""
        rows = [row("F", self.mean(v), c, "metric") for c, v in (
            ("model", self.model), ("all nodes", self.whole), ("basis", self.basis), ("empty", self.empty))]
        return [*rows, row("faithfulness", self.share(self.basis), "basis")]

    def measured(self, judged: Judged, name: str) -> list[Measurement]:
        """All measurements of a circuit, under the condition `name`."""
        found, value = judged.found, judged.found.value
        counts = {"nodes": judged.nodes, "error_nodes": judged.errors, "latents": judged.latents}
        out = [row("F", self.mean(value), name, "metric"), row("faithfulness", self.share(value), name)]
        out += [] if judged.bare is None else [row("without_errors", self.share(judged.bare), name)]
        out += [] if judged.rest is None else [row("completeness", self.share(judged.rest), name)]
        return [*out, row("faithfulness_basis", self.ratio(value, self.basis), name),
                row("faithfulness_model", self.ratio(value, self.model), name),
                row("difference", self.mean((value - self.model).abs()), name, "metric"),
                Measurement("correlation", correlation(value, self.model), self.n, condition=name),
                row("same_choice", self.mean(((value > 0) == (self.model > 0)).double()), name, "share"),
                row("same_top_token", self.mean(found.top), name, "share"), row("kl", self.mean(found.kl), name, "nats"),
                *(Measurement(key, float(count), self.n, condition=name, unit="nodes") for key, count in counts.items())]


class Judge(Scale):
    """Prompts on which circuits of one setup are judged.

    Args:
        model, basis, metric: as when they were found.
        setup: of the circuits.
        batches: held-out prompts.
        fill: values of ablated nodes, from a circuit (None: from these prompts, for ablations that need no fill).
        resamples, seed: of the bootstrap; prompts with the same tokens are drawn together.
        rows: prompts times circuits in one forward, about.
    """

    def __init__(self, model: ModelAdapter[Any], basis: Basis, setup: Setup, batches: Sequence[ContrastBatch],
                 metric: Metric[Any], *, fill: Means | None = None, resamples: int = 2000, seed: int = 0, rows: int = 64) -> None:
        self.runner = Runner(model, basis, setup, batches, metric, fill=fill, latents="all", whole=True)
        self.rows = rows
        names: dict[tuple[int, ...], int] = {}
        prompts = [tuple(row.tolist()) for item in batches for row in item.clean.shown().cpu()]
        group = torch.tensor([names.setdefault(p, len(names)) for p in prompts])
        ends = [self.runner.full(latents=a, errors=b) for a, b in ((True, False), (False, False), (True, True))]
        values = self.run({s: torch.cat([e[s] for e in ends]) for s in setup.sites}).value
        super().__init__(self.runner.model_values.double().cpu(), *values, group, resamples, seed)

    @property
    def scale(self) -> Scale:
        """The numbers alone, without the model."""
        return Scale(self.model, self.basis, self.empty, self.whole, self.group, self.resamples, self.seed)

    def run(self, masks: Masks) -> Outcome:
        """What M masks do to every prompt."""
        parts: list[list[Tensor]] = [[], [], []]
        many = next(iter(masks.values())).shape[0]
        for index, p in enumerate(self.runner.prompts):
            size = max(1, self.rows // len(p.model))
            clean = (p.logits[:, 0] if p.logits.shape[1] == 1 else p.logits[torch.arange(len(p.logits)), p.item.clean.last()])
            reference = clean.double().log_softmax(-1)
            rows: list[list[Tensor]] = [[], [], []]
            for first in range(0, many, size):
                value, logits = self.runner.run(index, {s: m[first:first + size] for s, m in masks.items()})
                spread = logits.double().log_softmax(-1)
                rows[0].append(value.double())
                rows[1].append((reference.exp() * (reference - spread)).sum(-1))
                rows[2].append((logits.argmax(-1) == clean.argmax(-1)).double())
            for part, row in zip(parts, rows, strict=True):
                part.append(torch.cat(row).cpu())
        return Outcome(*(torch.cat(part, dim=1) for part in parts))

    def candidates(self) -> Masks:
        """Nodes that do anything on these prompts: site -> bool [R, K + 1] ([K + 1] for shared masks)."""
        nodes = Nodes.of(self.runner)
        return dict(circuit_of(self.runner, nodes, torch.ones(len(nodes), dtype=torch.bool), {}).masks)

    def judge(self, circuits: Sequence[Circuit], *, rest: bool = True, bare: bool = True) -> list[Judged]:
        """Each circuit and, if asked for, what is left without it and itself without its error nodes. Cost: a run for each."""
        on = self.runner.dense(circuits)
        sets = {"found": on}
        if rest:
            sets["rest"] = {s: 1 - m for s, m in on.items()}
        if bare and self.runner.setup.error == "node":
            sets["bare"] = {s: torch.cat([m[..., :-1], torch.zeros_like(m[..., -1:])], -1) for s, m in on.items()}
        ran = self.run({s: torch.cat([m[s] for m in sets.values()]) for s in on})
        parts = {name: slice(i * len(circuits), (i + 1) * len(circuits)) for i, name in enumerate(sets)}
        out = []
        for index, circuit in enumerate(circuits):
            stats = circuit.stats()
            more = {name: ran.value[where][index] for name, where in parts.items() if name != "found"}
            out.append(Judged(stats["nodes"], stats["errors"], stats["latents"], ran[index], **more))
        return out

    def circuits(self, circuits: Sequence[Circuit], name: str) -> tuple[list[Measurement], Tensor]:
        """Measurements of each circuit under the condition `name`, and F(C) of every prompt [M, N]."""
        found = self.judge(circuits)
        return [m for judged in found for m in self.measured(judged, name)], torch.stack([j.found.value for j in found])

    def subsets(self, circuit: Circuit, name: str, *, draws: int = 8) -> list[Measurement]:
        """Completeness by random subsets: F(C without K) against F(M without K) for random K, for K = nothing and K = C.

        Sizes are uniform from 1 to |C|. The mean difference is given as a share of F(M) - F(empty), beside slope and intercept of
        F(C without K) over F(M without K); ideal are 0, 1 and 0.
        """
        dense = self.runner.dense([circuit])
        generator = torch.Generator().manual_seed(self.seed)
        flat = torch.cat([m.flatten() for m in dense.values()])
        on = flat.nonzero()[:, 0].cpu()
        knocked = [torch.zeros(0, dtype=torch.long), on]
        for _ in range(draws if len(on) else 0):
            size = int(torch.randint(1, len(on) + 1, (), generator=generator))
            knocked.append(on[torch.randperm(len(on), generator=generator)[:size]])
        rows = []
        for start in (flat, torch.ones_like(flat)):
            for out in knocked:
                kept = start.clone()
                kept[out.to(kept.device)] = 0
                rows.append(kept)
        table = torch.stack(rows)
        masks, at = {}, 0
        for site, mask in dense.items():
            masks[site] = table[:, at:at + mask.numel()].view(len(rows), *mask.shape[1:])
            at += mask.numel()
        value = self.run(masks).value
        ours, whole = value[:len(knocked)], value[len(knocked):]
        span = float((self.model - self.empty).mean())
        gap = (ours.mean(1) - whole.mean(1)).abs() / abs(span)
        x, y = whole.mean(1), ours.mean(1)
        spread = float((x - x.mean()).square().sum())
        slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else math.nan
        found = {"subset_gap": float(gap.mean()), "subset_slope": slope,
                 "subset_intercept": float(y.mean()) - slope * float(x.mean())}
        return [Measurement(key, v, len(knocked), condition=name) for key, v in found.items() if math.isfinite(v)]

    def minimality(self, circuit: Circuit, name: str, *,
                   threshold: float = 0.01) -> tuple[list[Measurement], list[tuple[str, float]]]:
        """How much each node of the circuit matters, and the share of nodes that hardly do.

        Returns:
            measurements, and for each node its name `SITE row LATENT` and F(C) - F(C without it), largest first.
        """
        dense = self.runner.dense([circuit])
        nodes = [(site, tuple(where)) for site, m in dense.items() for where in m[0].nonzero().tolist()]
        if not nodes:
            return [], []
        masks = {s: m.repeat(len(nodes) + 1, 1, 1) for s, m in dense.items()}
        for index, (site, (r, k)) in enumerate(nodes):
            masks[site][index, r, k] = 0
        value = self.run(masks).value.mean(1)
        change = value[-1] - value[:-1]
        span = float((self.model - self.empty).mean())
        idle = float((change.abs() < threshold * abs(span)).double().mean())
        width = self.runner.basis.d_dict
        names = [f"{s} {self.runner.places.names[r]} {'error' if k == width else k}" for s, (r, k) in nodes]
        table = sorted(zip(names, change.tolist(), strict=True), key=lambda pair: -abs(pair[1]))
        return [Measurement("idle_nodes", idle, len(nodes), condition=name, unit="share")], table


def row(name: str, estimate: Estimate, condition: str, unit: str = "", *, size: int | None = None) -> Measurement:
    """A measurement from an estimate; `size` puts it beside others of circuits of that size."""
    return Measurement(name, estimate.value, estimate.n, estimate.low, estimate.high, condition, at(size), unit)


def at(size: int | None) -> str | None:
    """Where measurements of circuits of a size stand in reports."""
    return None if size is None else f"{size} nodes"


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of [N] and [N]; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / size if size > 0 else 0.0


def areas(fractions: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Areas under faithfulness (CPR, higher is better) and |1 - faithfulness| (CMD, 0 is best) over the share of nodes kept.

    Trapezoids over linear p, as published: then half of the area lies above p = 0.5; `log_*` is the same over log p, divided by
    its range.
    """
    out = {}
    for prefix, x in (("", list(fractions)), ("log_", [math.log(p) for p in fractions])):
        steps = [b - a for a, b in itertools.pairwise(x)]
        scale = 1.0 if not prefix else x[-1] - x[0]
        for name, y in (("cpr", list(values)), ("cmd", [abs(1 - v) for v in values])):
            heights = [(a + b) / 2 for a, b in itertools.pairwise(y)]
            out[prefix + name] = sum(d * h for d, h in zip(steps, heights, strict=True)) / scale
    return out


def interpolated(points: Mapping[float, float], grid: Sequence[float] = FRACTIONS) -> list[float]:
    """Faithfulness at the shares of `grid`, linear between the points known (0 nodes and all nodes should be among them)."""
    known = sorted(points.items())
    out = []
    for p in grid:
        below = max((k for k in known if k[0] <= p), default=known[0])
        above = min((k for k in known if k[0] >= p), default=known[-1])
        gap = above[0] - below[0]
        out.append(below[1] if gap == 0 else below[1] + (above[1] - below[1]) * (p - below[0]) / gap)
    return out


def areas_of(points: Mapping[float, float]) -> dict[str, float]:
    """`areas` of a frontier: share of nodes -> faithfulness, 0 and 1 among the shares."""
    return areas(FRACTIONS, interpolated(points))


def nesting(family: Sequence[Circuit]) -> float:
    """Mean share of a smaller circuit's nodes that a larger one of the family has; NaN for fewer than two."""
    found = [a.containment(b) for i, a in enumerate(family) for b in family[i + 1:] if a.size()]
    return sum(found) / len(found) if found else math.nan


def random_like(circuit: Circuit, pool: Mapping[Site, Tensor], seed: int) -> Circuit:
    """As many nodes, drawn at random from `pool` (site -> bool [R, K + 1])."""
    flat = torch.cat([m.flatten() for m in pool.values()])
    on = flat.nonzero()[:, 0]
    pick = on[torch.randperm(len(on), generator=torch.Generator().manual_seed(seed))[:circuit.size()]]
    chosen = torch.zeros_like(flat)
    chosen[pick] = True
    masks, at = {}, 0
    for site, m in pool.items():
        masks[site] = chosen[at:at + m.numel()].view_as(m)
        at += m.numel()
    return replace(circuit, masks=masks, scores=None, details={**circuit.details, "finder": "random nodes"})
