"""Finder `threshold`: the nodes with the largest scores.

Shapes: R rows of a mask, K latents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import UserError
from reprbasis.interfaces.finder import Circuit, CircuitFinder
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.kits.circuits import Runner
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import ThresholdConfig
from .nodes import Nodes, circuit, prepare


class ThresholdFinder(CircuitFinder[ThresholdConfig]):
    """Top nodes of a score table, over all sites or at each."""

    def find(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any], *,
             scores: ScoreTable | None = None) -> Circuit:
        """The `nodes` best.

        Raises:
            UserError: no scores, or scores that do not fit the kind of mask.
        """
        return self._cut(model, basis, batches, metric, scores, [self.config.nodes])[0]

    def family(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any], *,
               scores: ScoreTable | None = None) -> list[Circuit]:
        """One circuit for each of `sizes`; each contains the smaller ones."""
        return self._cut(model, basis, batches, metric, scores, sorted(self.config.sizes))

    def _cut(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any],
             scores: ScoreTable | None, sizes: Sequence[int]) -> list[Circuit]:
        if scores is None:
            raise UserError("the finder 'threshold' needs scores", do="give it the scores of a scorer: from: {scores: STEP}")
        runner = prepare(self.config, model, basis, batches, metric)
        nodes = Nodes.of(runner)
        flat = torch.cat([_scores(runner, scores, site).flatten()[nodes.places[site].cpu()] for site in runner.setup.sites])
        rank = flat if self.config.order == "positive" else flat.abs()
        spans = list(nodes.spans.values()) if self.config.per_site else [slice(0, len(nodes))]
        wanted = [(s.start + rank[s].argsort(descending=True, stable=True)) for s in spans]
        if self.config.order == "positive":
            wanted = [best[rank[best] > 0] for best in wanted]
        found = []
        for size in sizes:
            kept = torch.zeros(len(nodes), dtype=torch.bool)
            kept[torch.cat([best[:size] for best in wanted])] = True
            details = {"finder": "threshold", "scorer": scores.details.get("scorer"), "order": self.config.order,
                       "per_site": self.config.per_site, "candidates": len(nodes)}
            found.append(circuit(runner, nodes, kept.to(model.device), details))
        return found


def _scores(runner: Runner, scores: ScoreTable, site: Site) -> Tensor:
    """Scores [R, C + 1] of the latents that take part, as the mask is indexed.

    Raises:
        UserError: scores without positions and a mask with them, or a site without scores.
    """
    if site not in scores.nodes:
        raise UserError(f"there are no scores at {site}", do="score the sites of the circuit")
    table, setup = scores.nodes[site].detach().cpu().to(runner.dtype), runner.setup
    latents = runner.coders[site].latents
    if latents is not None:
        table = torch.cat([table[..., latents.cpu()], table[..., -1:]], -1)
    if setup.index == "shared":
        return table[None] if table.ndim == 1 else table.sum(0, keepdim=True)
    if table.ndim == 1:
        raise UserError("these scores have no positions, the circuit has", do="use index: shared, or scores per token")
    if setup.index == "role" and scores.details.get("index") != "role":
        rows = torch.zeros(len(runner.places), table.shape[1], dtype=table.dtype)
        layouts = {tuple(p.rows[0].tolist()) for p in runner.prompts}
        if len(layouts) > 1:
            raise UserError("prompts of several layouts have no common token positions", do="use scores per role")
        index = torch.tensor(layouts.pop())
        return rows.index_add(0, index[index >= 0], table[:len(index)][index >= 0])
    if len(table) < len(runner.places):
        table = torch.cat([table, table.new_zeros(len(runner.places) - len(table), table.shape[1])])
    return table[:len(runner.places)]
