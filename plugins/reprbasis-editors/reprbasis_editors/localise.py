"""Which heads matter at the answer: forward-only, by leaving out what they write there.

Shapes: B prompts, D residual width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ForwardResult, ModelAdapter, Start
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.components import heads_in_context, stream_before
from reprbasis.sites import Site

from .search import margins, merged


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
    """(layer, head) -> how much of the mean logit difference goes when the head writes at the answer's position what it writes
    there in the corrupted prompt (nothing, where there is none); largest first.

    Layers first, then the heads of those whose attention matters most, whichever way: a head that feeds the one that writes the
    answer is found although it writes nothing along the answer itself, and one that every prompt needs is not.

    Args:
        model: the model.
        change: the prompts; the first ones are used.
        layers: how many layers are looked into.
        prompts: at most about that many, evenly from all batches.

    Cost: a forward for each layer, and one for each head of the chosen ones, all from the layer on.
    """
    used = merged([_first(item, max(1, prompts // len(change))) for item in change[:prompts]])
    sites = [stream_before(n) for n in range(model.info.n_layers)]
    runs = [model.forward(i.clean, capture=sites, logits="none") for i in used]
    others = [None if i.corrupt is None else model.forward(i.corrupt, capture=sites, logits="none") for i in used]

    def written(layer: int, run: ForwardResult) -> Tensor:
        x = run[stream_before(layer)]
        return heads_in_context(model.attention(layer), x, run.batch, run.batch.last()).written

    def exchange(layer: int) -> list[Tensor]:
        """[H, B, D] of each batch."""
        here = [written(layer, run) for run in runs]
        return [(0 if other is None else written(layer, other)) - y for y, other in zip(here, others, strict=True)]

    def margin(layer: int, parts: Sequence[Tensor]) -> float:
        found = []
        for item, run, part in zip(used, runs, parts, strict=True):
            before = stream_before(layer)
            edit = AddAt(Site("attn_out", layer), item.clean.last(), part)
            logits = model.forward(item.clean, start=Start(before, run[before]), edits=[edit], logits="last").logits
            assert logits is not None
            found.append(margins(logits[:, 0], item.targets))
        return float(torch.cat(found).mean())

    last = model.info.n_layers - 1
    start = margin(last, [torch.zeros_like(part[0]) for part in exchange(last)])
    effect = {n: start - margin(n, [part.sum(0) for part in exchange(n)]) for n in range(model.info.n_layers)}
    found = {}
    for layer in sorted(effect, key=lambda n: -abs(effect[n]))[:layers]:
        parts = exchange(layer)
        for head in range(model.info.n_heads):
            found[layer, head] = start - margin(layer, [part[head] for part in parts])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _first(item: ContrastBatch, count: int) -> ContrastBatch:
    rows = torch.arange(min(count, len(item.clean.ids)), device=item.clean.ids.device)
    answer, wrong = (None if t is None else t[rows] for t in (item.targets.answer, item.targets.wrong))
    return ContrastBatch(item.clean.take(rows), None if item.corrupt is None else item.corrupt.take(rows), Targets(answer, wrong))
