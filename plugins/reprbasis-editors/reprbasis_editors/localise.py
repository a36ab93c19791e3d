"""Which heads matter at the answer: forward-only, by leaving out what they write there.

Shapes: B prompts, D residual width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.interfaces.model import ModelAdapter, Start
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.components import heads_in_context, stream_before
from reprbasis.sites import Site

from .search import margins


@dataclass(frozen=True)
class AddAt:
    """An edit that adds `value` [B, D] at one token `at` [B] of each row."""

    site: Site
    at: Tensor
    value: Tensor

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        out = x.clone()
        out[torch.arange(len(x), device=x.device), self.at] += self.value.to(x.dtype)
        return out


@torch.no_grad()
def heads_that_matter(model: ModelAdapter, change: Sequence[ContrastBatch], *, layers: int, prompts: int = 16
                      ) -> dict[tuple[int, int], float]:
    """(layer, head) -> how much of the mean logit difference goes when the head writes nothing at the answer's position.

    Layers first, then the heads of those whose attention matters most, whichever way: a head that feeds the one that writes the
    answer is found although it writes nothing along the answer itself.

    Args:
        model: the model.
        change: the prompts; the first ones are used.
        layers: how many layers are looked into.
        prompts: at most about that many.

    Cost: a forward for each layer, and one for each head of the chosen ones, all from the layer on.
    """
    used: list[ContrastBatch] = []
    for item in change:
        if sum(len(i.clean.ids) for i in used) < prompts:
            used.append(item)
    every = range(model.info.n_layers)
    runs = [model.forward(i.clean, capture=[stream_before(n) for n in every], logits="none") for i in used]

    def written(layer: int, which: int) -> Tensor:
        batch = used[which].clean
        return heads_in_context(model.attention(layer), runs[which][stream_before(layer)], batch, batch.last()).written

    def without(layer: int, parts: Sequence[Tensor]) -> float:
        found = []
        for item, run, part in zip(used, runs, parts, strict=True):
            before = stream_before(layer)
            edit = AddAt(Site("attn_out", layer), item.clean.last(), -part)
            logits = model.forward(item.clean, start=Start(before, run[before]), edits=[edit], logits="last").logits
            assert logits is not None
            found.append(margins(logits[:, 0], item.targets))
        return float(torch.cat(found).mean())

    last = model.info.n_layers - 1
    start = without(last, [torch.zeros_like(written(last, i)[0]) for i in range(len(used))])
    effect = {layer: start - without(layer, [written(layer, i).sum(0) for i in range(len(used))]) for layer in every}
    found = {}
    for layer in sorted(effect, key=lambda n: -abs(effect[n]))[:layers]:
        parts = [written(layer, i) for i in range(len(used))]
        for head in range(model.info.n_heads):
            found[layer, head] = start - without(layer, [p[head] for p in parts])
    return dict(sorted(found.items(), key=lambda item: -item[1]))
