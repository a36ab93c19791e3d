"""Changing weights for a while: what training-based editors and relearning tests share.

Shapes: B batch, T tokens, D residual width, M MLP width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import CapabilityError
from ..interfaces.model import ModelAdapter
from ..interfaces.tokens import TokenBatch
from ..sites import Site
from .components import neurons, stream_before


@contextmanager
def restored(model: ModelAdapter[Any], names: Sequence[str]) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """The named parameters, which may be changed and trained inside, and a copy of them. On leaving, whatever happened, they are
    what they were, bit for bit, need no gradient and have none.
    """
    everything = model.parameters()
    parameters = {name: everything[name] for name in names}
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        yield parameters, kept
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.requires_grad_(False)
                p.grad = None
                p.copy_(kept[name])


def inner(model: ModelAdapter[Any]) -> list[str]:
    """Names of all parameters but those with a row for every token: input embedding and unembedding, tied or not."""
    return [name for name, p in model.parameters().items() if p.shape[0] != model.info.vocab]


def mlp_reads(model: ModelAdapter[Any], layer: int, batch: TokenBatch) -> Tensor:
    """[B, T, M] what the output matrix of a layer's MLP reads at every token. One forward to that layer.

    Raises:
        CapabilityError: the MLP does not read the stream after the attention (parallel blocks).
    """
    sites = [stream_before(layer), Site("attn_out", layer), Site("mlp_out", layer)]
    with torch.no_grad():
        result = model.forward(batch, capture=sites, logits="none")
        before, attn, written = (result[s] for s in sites)
        weights = model.mlp(layer)
        read = neurons(weights, weights.norm(before + attn))
        out = read @ weights.W_out.T
        out = out if weights.b_out is None else out + weights.b_out
    real = batch.mask
    if not torch.allclose(out[real], written[real], rtol=1e-2, atol=1e-2 * float(written[real].abs().max())):
        raise CapabilityError(f"the MLP of layer {layer} does not read the stream after the attention",
                              do="edit another kind of component")
    return read
