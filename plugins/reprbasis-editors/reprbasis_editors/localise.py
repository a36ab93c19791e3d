"""Which heads matter at the answer: forward-only, by leaving out what they write there.

Shapes: B prompts, D residual width, H heads, K trials.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reprbasis.runtime.last import LastToken

from .search import Judge, margins_at


@torch.no_grad()
def heads_that_matter(judge: Judge, *, layers: int, prompts: int = 8) -> dict[tuple[int, int], float]:
    """(layer, head) -> how much of the mean logit difference goes when the head writes at the answer's position what it writes
    there in the corrupted prompt (nothing, where there is none); largest first.

    Layers first, then the heads of those whose attention matters most, whichever way: a head that feeds the one that writes the
    answer is found although it writes nothing along the answer itself, and one that every prompt needs is not.

    Args:
        judge: of the prompts; its layer 0.
        layers: how many layers are looked into.
        prompts: at most about that many, evenly from all batches, the first ones.

    Cost: a forward of the prompts, unless the judge has made it, and one of the corrupted; for each layer and each head of the
    chosen ones the blocks above at the last token.

    Raises:
        CapabilityError: see `LastToken`.
    """
    model, count = judge.model, len({i for part in judge.change for i in part.origins})
    used, others = [], []
    for part in judge.change:
        ranks = [part.origins[:row].count(i) for row, i in enumerate(part.origins)]
        rows = [row for row, i in enumerate(part.origins) if i < prompts and ranks[row] < max(1, prompts // count)]
        if rows:
            taken = part.take(rows)
            corrupt = taken.item.corrupt
            used.append((taken.item, LastToken(model, taken.item.clean) if taken.last is None else taken.last))
            others.append(None if corrupt is None else LastToken(model, corrupt, check=False))

    def exchange(layer: int) -> list[Tensor]:
        """[H, B, D] of each batch."""
        return [(0 if other is None else other.written(layer)) - run.written(layer)
                for (_, run), other in zip(used, others, strict=True)]

    def margin(trials: Sequence[tuple[int, Sequence[Tensor]]]) -> Tensor:
        """[K] of trials: (layer, what is added there in each batch)."""
        found = [margins_at(run, run.final([(n, parts[i]) for n, parts in trials]), item.targets)
                 for i, (item, run) in enumerate(used)]
        return torch.cat(found, 1).mean(1)

    parts = {n: exchange(n) for n in range(model.info.n_layers)}
    whole = [(n, [part.sum(0) for part in here]) for n, here in parts.items()]
    nothing = (model.info.n_layers - 1, [torch.zeros_like(x) for x in whole[-1][1]])
    *after, start = margin([*whole, nothing]).tolist()
    first = sorted(sorted(parts, key=lambda n: -abs(start - after[n]))[:layers])
    names = [(n, head) for n in first for head in range(model.info.n_heads)]
    left = margin([(n, [part[head] for part in parts[n]]) for n, head in names]).tolist()
    return dict(sorted(((name, start - m) for name, m in zip(names, left, strict=True)), key=lambda item: -item[1]))

