"""Scorer `direct`: what nodes write straight to the logits.

Shapes: B batch, T tokens, D width, K latents.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import CapabilityError, SiteError
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter, Unembedding
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
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


@torch.no_grad()
def through_norm(out: Unembedding, x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [B, T, D] at the final vector -> at the stream x [B, T, D], the norm held at the scale it has there.

    The scale is read off the norm itself: `norm(x) = s gain (x - c) + norm(0)` with c = 0 (RMSNorm) or the mean of x (LayerNorm).

    Raises:
        CapabilityError: the norm is neither.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    gain, y = out.gain.to(wide), (out.norm(x) - out.norm(torch.zeros_like(x))).to(wide)
    for centred in (False, True):
        v = gain * (x.to(wide) - x.to(wide).mean(-1, keepdim=True) if centred else x.to(wide))
        scale = (y * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
        if float((y - scale * v).norm()) <= 10 * torch.finfo(x.dtype).eps * max(float(y.norm()), 1e-12) * x.shape[-1] ** 0.5:
            u = gain * gradient.to(wide)
            return scale * (u - u.mean(-1, keepdim=True) if centred else u)
    raise CapabilityError("the final norm is neither an RMSNorm nor a LayerNorm with the gain that the model names",
                          do="use attribution or ig, which need to know nothing about the norm")
