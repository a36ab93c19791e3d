"""Scorer `iterative-ig`: integrated gradients inside a circuit that shrinks round by round.

Scores taken in the whole model say what a node does while every other node helps. What counts for a small circuit is what it
does there, so nodes are dropped a few at a time and the rest is scored again.

Shapes: B batch, T tokens, D width, K latents, P places, N points of a path.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.nodes import Nodes, Places, stream_before
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .base import NodeScorer, Part, Total, checked, compared, moves, spread, table
from .config import IterativeConfig
from .gradients import along, points, scores

Masks = dict[Site, Tensor]
"""Site -> [P, K + 1]: which nodes are in the circuit; the others have their baseline."""


@dataclass(frozen=True)
class Scored:
    """Scores of one batch in a circuit, the circuit's metric summed over examples, and (`joint`) its fall without any node."""

    parts: list[Part]
    inside: float
    effect: float = 0.0


@dataclass(frozen=True)
class Seen:
    """An `Edit` that changes nothing and keeps what reaches a site, before the edits after it."""

    site: Site
    values: dict[Site, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> the same."""
        self.values[self.site] = x
        return x


class IterativeScorer(NodeScorer[IterativeConfig]):
    """Rounds r = 1 .. R of `ig` in the circuit left by the round before, which keep A (nodes / A)^(r / R) nodes of A.

    A counts the nodes that differ from their baseline somewhere. The first round is in the whole model.
    `path: site` moves all kept nodes of one site from what they are in the circuit to their baseline; `path: joint` moves the
    kept nodes of all sites together, so that all scores add up to m(circuit) - m(no node). The score of a node is that of the
    last round it took part in; scores of dropped nodes are scaled down, where need be, so that no dropped node outranks one
    that was dropped later or stayed: the ranking is nested.

    `details["rounds"]` gives nodes and mean metric of each circuit; completeness is that of the last round.

    Cost of a batch with S sites: `site`: R (S + 1) forwards and R S N (forward + backward) of the model after each site;
    `joint`: R (N + 2) forwards and R N backwards; both: 2 (R + 1) forwards for the clean and corrupted runs.
    """

    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """Only the sizes of nodes: which of them differ from their baseline."""
        for site in nodes.basis.sites:
            z, e = moves(nodes.state(site))
            yield Part(site, spread(nodes, places, z.abs(), e.abs().sum(-1)))

    def score(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any]) -> ScoreTable:
        """See the class."""
        checked(self.full_name, batches, metric, differentiates=True)
        places = Places.of(self.config.index, batches)
        sizes = Total(places, basis, model.device)
        for nodes in self.runs(model, basis, batches, metric):
            sizes.add(nodes, metric, self.parts(nodes, metric, places))
        kept = {s: v > 0 for s, v in sizes.values.items()}
        start, values = count(kept), {s: torch.zeros_like(v) for s, v in sizes.values.items()}
        rounds: list[dict[str, float]] = []
        dropped: list[Masks] = []
        score_in = self._joint if self.config.path == "joint" else self._by_site
        for number in range(1, self.config.rounds + 1):
            inside = {s: torch.ones_like(m) for s, m in kept.items()} if number == 1 else kept
            masks = {s: m.to(basis.normaliser.mean.dtype) for s, m in inside.items()}
            total, circuit, effect = Total(places, basis, model.device), 0.0, 0.0
            for nodes in self.runs(model, basis, batches, metric):
                found = score_in(nodes, metric, places, masks)
                total.add(nodes, metric, found.parts)
                circuit, effect = circuit + found.inside, effect + found.effect
            for site, mask in kept.items():
                values[site][mask] = total.values[site][mask]
            rounds.append({"nodes": count(kept), "metric": circuit / total.n})
            goal = round(start * (min(self.config.nodes, start) / max(start, 1)) ** (number / self.config.rounds))
            stay = best(total.values, kept, goal, signed=self.config.order == "positive")
            dropped.append({s: kept[s] & ~stay[s] for s in kept})
            kept = stay
        complete = total.completeness()
        if self.config.path == "joint":
            complete = {"all": compared(sum(float(v.sum()) for v in total.values.values()) / total.n, effect / total.n)}
        nest(values, kept, dropped)
        total.values = values
        details = {"completeness": complete, "rounds": [*rounds, {"nodes": count(kept)}]}
        return table(self, basis, places, total, metric, details)

    def _by_site(self, nodes: Nodes, metric: Metric[Any], places: Places, masks: Masks) -> Scored:
        """One path for each site, from the circuit's values; and the metric of the circuit."""
        sites, info = nodes.basis.sites, nodes.model.info
        at, weights = points(self.config.rule, self.config.steps)
        edits = nodes.edits({s: places.spread(m, nodes.item, outside=1.0) for s, m in masks.items()})
        seen: dict[Site, Tensor] = {}
        both = [edit for keep in edits for edit in (Seen(keep.site, seen), keep)]
        run = nodes.run(both, capture=[*sites, *nodes.streams])
        inside, parts = nodes.measure(metric, run), []
        for site, keep in zip(sites, edits, strict=True):
            state = nodes.state(site, seen[site])
            codes, error = state.at(keep.share[..., :-1], keep.share[..., -1:])
            here = replace(state, codes=codes, error=error)
            start = stream_before(info, site)
            later = [e for e in edits if e.site != site and (start is None or info.depth(e.site) > info.depth(start))]
            latents, value, end = along(nodes, metric, here, at, weights, rows=self.config.rows, edits=later, within=run)
            parts.append(Part(site, scores(nodes, places, here, latents, value), float((inside - end).sum())))
        return Scored(parts, float(inside.sum()))

    def _joint(self, nodes: Nodes, metric: Metric[Any], places: Places, masks: Masks) -> Scored:
        """All kept nodes of all sites on one path: integrated gradients of the metric as a function of the masks."""
        at, weights = points(self.config.rule, self.config.steps)
        sums = {s: torch.zeros_like(m, dtype=torch.float64) for s, m in masks.items()}
        for index in torch.arange(len(at)).split(max(1, self.config.rows // nodes.n)):
            leaves = {s: ((1 - at[index]).to(m)[:, None, None] * m).requires_grad_() for s, m in masks.items()}
            result = nodes.run(nodes.edits({s: _replicas(nodes, places, leaf) for s, leaf in leaves.items()}), grad=True,
                               n=len(index))
            found = torch.autograd.grad(nodes.measure(metric, result).sum(), list(leaves.values()))
            for (site, mask), gradient in zip(masks.items(), found, strict=True):
                sums[site] += (gradient * weights[index].to(gradient)[:, None, None]).sum(0) * mask
        with torch.no_grad():
            ends = {s: torch.stack([m, torch.zeros_like(m)]) for s, m in masks.items()}
            result = nodes.run(nodes.edits({s: _replicas(nodes, places, m) for s, m in ends.items()}), n=2)
            inside, none = nodes.measure(metric, result).sum(1).tolist()
        return Scored([Part(s, v) for s, v in sums.items()], inside, inside - none)


def _replicas(nodes: Nodes, places: Places, masks: Tensor) -> Tensor:
    """[c, P, K + 1] masks of replicas -> [c, B or 1, T, K + 1]."""
    return places.spread(masks.movedim(1, 0), nodes.item, outside=1.0).movedim(2, 0)


def count(masks: Masks) -> int:
    """Nodes that are on."""
    return sum(int(m.sum()) for m in masks.values())


def best(scores: Masks, among: Masks, most: int, *, signed: bool) -> Masks:
    """The `most` nodes of largest |score| (or score) among those that are on; earlier sites win ties."""
    flat = torch.cat([torch.where(among[s], v if signed else v.abs(), -torch.inf).flatten() for s, v in scores.items()])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:min(most, count(among))]] = True
    parts = chosen.split([v.numel() for v in scores.values()])
    return {s: part.view_as(v) for part, (s, v) in zip(parts, scores.items(), strict=True)}


def nest(values: Masks, kept: Masks, dropped: Sequence[Mapping[Site, Tensor]]) -> None:
    """Scale, in place, scores of dropped nodes so that none outranks a node that was dropped later or stayed.

    Where the largest of a round's dropped scores is above the smallest that outlived it, the round is mapped, order and sign
    kept, into the upper half of what lies below.
    """
    def sizes(masks: Mapping[Site, Tensor]) -> Tensor:
        found = torch.cat([values[s][m].abs() for s, m in masks.items()])
        return found[found > 0]

    floor = sizes(kept).min() if len(sizes(kept)) else torch.tensor(torch.inf)
    for masks in reversed(dropped):
        found = sizes(masks)
        if not len(found):
            continue
        if (peak := found.max()) > floor:
            for site, mask in masks.items():
                v = values[site][mask]
                values[site][mask] = v.sign() * floor * (0.5 + 0.49 * v.abs() / peak)
            found = sizes(masks)
        floor = torch.minimum(floor.to(found), found.min())
