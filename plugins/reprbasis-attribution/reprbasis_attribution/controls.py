"""Scorers `magnitude` and `random`: what a scorer that knows nothing of the metric would say.

Shapes: B batch, T tokens, D width, K latents, P places.
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

from .base import NodeScorer, Part, moves, spread
from .config import NodesConfig, RandomConfig


def sizes(nodes: Nodes, state: State) -> tuple[Tensor, Tensor]:
    """Distance of each node from its baseline: latents [B, T, K], error [B, T], in the dictionary's units."""
    z, e = moves(state)
    return z.abs(), e.norm(dim=-1) * nodes.basis.normaliser.scale[nodes.basis.index(state.site)]


class MagnitudeScorer(NodeScorer[NodesConfig]):
    """Mean over examples of sum_t |z - z_base|, for the error node |e - e_base| in the dictionary's units.

    Latents of dictionaries with unit decoder rows and error nodes are so in one unit, at all sites. Cost of a batch: 2 forwards.
    """

    differentiates = False

    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """From codes alone."""
        for site in nodes.basis.sites:
            yield Part(site, spread(nodes, places, *sizes(nodes, nodes.state(site))))


class RandomScorer(NodeScorer[RandomConfig]):
    """A uniform number in (0, 1] for each node that differs from its baseline somewhere, 0 for the others.

    The numbers depend on the seed, the site and the node, not on the batches. Cost of a batch: 2 forwards.
    """

    differentiates = False

    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """Which nodes differ from their baseline."""
        for site in nodes.basis.sites:
            yield Part(site, spread(nodes, places, *sizes(nodes, nodes.state(site))))

    def score(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any]) -> ScoreTable:
        """See the class."""
        found = super().score(model, basis, batches, metric)
        nodes = {}
        for number, (site, value) in enumerate(found.nodes.items()):
            generator = torch.Generator().manual_seed(self.config.seed * 100_003 + number)
            draw = 1 - torch.rand(value.shape[-1], len(value) if value.ndim == 2 else 1, generator=generator)
            nodes[site] = torch.where(value > 0, draw.T.reshape(value.shape).to(value), torch.zeros_like(value))
        return ScoreTable(nodes, details=found.details)
