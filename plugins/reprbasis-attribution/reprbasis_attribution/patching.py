"""Scorer `patching`: set one node to its baseline, run the model, look at the metric.

Shapes: B batch, T tokens, D width, K latents, P places, M nodes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.kits.nodes import Nodes, Places, State
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .base import NodeScorer, Part, moves, spread
from .config import NodesConfig, PatchingConfig
from .gradients import GradientScorer


class PatchingScorer(NodeScorer[PatchingConfig]):
    """Activation patching of single nodes (Vig et al. 2020; Meng et al. 2022), the referee of the other scorers:

        score(node) = m(clean) - m(clean, with this node at its baseline at all tokens of its place)

    Nodes that equal their baseline in a batch are not run; their effect is 0. Several nodes go in one forward.

    Cost of a batch in which A_s nodes of site s differ from their baseline: 2 + sum_s (A_s + 1) forwards of the part of the model
    after s, no backwards. With `most` A_s is at most that, and each batch costs 1 forward and 1 backward more.
    """

    differentiates = False

    def __init__(self, config: PatchingConfig) -> None:
        super().__init__(config)
        self._chosen: dict[Site, Tensor] = {}

    def score(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any]) -> ScoreTable:
        """See the class; with `most`, the nodes to patch are chosen first."""
        self._chosen = {}
        if self.config.most is not None:
            same = {name: getattr(self.config, name) for name in NodesConfig.model_fields}
            first = GradientScorer(NodesConfig(**same))
            for site, value in first.score(model, basis, batches, metric).nodes.items():
                value = value.view(-1, value.shape[-1]).abs()
                best = value.flatten().topk(min(self.config.most, value.numel())).indices
                self._chosen[site] = torch.zeros(value.numel(), dtype=torch.bool).scatter(0, best, True).view_as(value)
        return super().score(model, basis, batches, metric)

    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """Every node that differs from its baseline, and the whole site."""
        clean = nodes.measure(metric)
        for site in nodes.basis.sites:
            state = nodes.state(site)
            z, e = moves(state)
            differs = spread(nodes, places, z.abs(), e.abs().sum(-1)) > 0
            if site in self._chosen:
                differs &= self._chosen[site].to(differs.device)
            which = differs.nonzero()
            values = torch.zeros(differs.shape, dtype=torch.float64, device=differs.device)
            values[differs] = effects(nodes, metric, places, state, which, rows=self.config.rows).sum(1).double()
            whole = nodes.resume(site, nodes.value(site, state.base_codes, state.base_error))
            yield Part(site, values, float((clean - nodes.measure(metric, whole)).sum()))


@torch.no_grad()
def effects(nodes: Nodes, metric: Metric[Any], places: Places, state: State, which: Tensor, *, rows: int = 64) -> Tensor:
    """How much the metric of each prompt falls when a node takes its baseline, [M, B].

    Args:
        nodes: the batch.
        metric: what to look at.
        places: of the nodes.
        state: of the site.
        which: [M, 2] place and latent (K: the error) of each node.
        rows: prompts times nodes in one forward.
    """
    clean, index, k = nodes.measure(metric), places.index(nodes.item), state.codes.shape[-1]
    out = [clean.new_zeros(0, nodes.n)]
    for part in which.split(max(1, rows // nodes.n)) if len(which) else ():
        codes, error = state.codes.repeat(len(part), 1, 1, 1), state.error.repeat(len(part), 1, 1, 1)
        for row, (place, node) in enumerate(part.tolist()):
            here = index == place
            if node == k:
                error[row][here] = state.base_error[here]
            else:
                codes[row, ..., node] = torch.where(here, state.base_codes[..., node], state.codes[..., node])
        found = nodes.resume(state.site, nodes.value(state.site, codes, error).flatten(0, 1))
        out.append(clean - nodes.measure(metric, found))
    return torch.cat(out)
