"""Scorer `direct`: what nodes write straight to the logits.

Shapes: B batch, T tokens, D width, K latents.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from reprbasis.errors import SiteError
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.kits.components import through_norm
from reprbasis.kits.nodes import Nodes, Places, pull
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .base import NodeScorer, Part
from .config import DirectConfig
from .gradients import scores

FINAL = Site("final")


class DirectScorer(NodeScorer[DirectConfig]):
    """Direct logit attribution (Elhage et al. 2021): the path from a node past all later blocks to the logits.

        score(node) = dm/dlogits W_U A (what the node adds to the stream - what its baseline would add)

    A is the final norm at the scale it has in the clean run, which makes it linear: what all writers of the stream add, each
    times A, sums to the vector the unembedding reads, exactly. At the site `final` A is the identity, and the score is exact for
    metrics linear in the logits. Sites count whether or not later blocks read them, so scores of `resid.L` and of what was
    written before it describe the same thing twice; only scores of different writers (`embed`, `attn_out.*`, `mlp_out.*`) add up.

    Cost of a batch: forwards: 1 with gradients from the last block on + 1 clean (+ 1 corrupted for that baseline).
    """

    def score(self, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any]) -> ScoreTable:
        """See the class.

        Raises:
            SiteError: a site does not write to the stream that the unembedding reads.
            CapabilityError: the final norm is not linear at a fixed scale.
        """
        for site in basis.sites:
            if site.name not in ("embed", "attn_out", "mlp_out", "resid", "final"):
                raise SiteError(f"'{site}' does not write to the residual stream", do="leave it out")
        return super().score(model, basis, batches, metric)

    def parts(self, nodes: Nodes, metric: Metric[Any], places: Places) -> Iterator[Part]:
        """From the gradient at the final vector."""
        last = Site("resid", nodes.model.info.n_layers - 1)
        stream = nodes.model.forward(nodes.item.clean, capture=[last], logits="none")[last]
        result = nodes.resume(last, stream, capture=[FINAL], grad=True)
        [at_final] = torch.autograd.grad(nodes.measure(metric, result).sum(), result[FINAL])
        at_stream = through_norm(nodes.model.unembedding(), stream, at_final)
        for site in nodes.basis.sites:
            gradient = at_final if site == FINAL else at_stream
            state = nodes.state(site)
            yield Part(site, scores(nodes, places, state, pull(nodes.basis, site, gradient, state.codes), gradient))
