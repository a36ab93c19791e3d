"""What every node of a graph of edges owes to all paths: influence on the outputs, and pruning by it (Ameisen et al. 2025).

Rows are targets, columns sources. With the absolute weights of each row made to add up to 1, N, and w the weight of each output,

    influence = w (N + N^2 + N^3 + ...)        the sum ends, since the graph has no cycles

Scaling all weights of a row changes nothing: a node passes on its own influence to its sources in proportion.

Shapes: N nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError


def normalised(weights: Tensor) -> Tensor:
    """[N, N] absolute weights, each row divided by its sum; rows without edges stay 0."""
    size = weights.abs()
    return size / size.sum(1, keepdim=True).clamp_min(1e-10)


def influence(weights: Tensor, outputs: Tensor) -> Tensor:
    """[N] influence of every node on the outputs.

    Args:
        weights: [N, N] edges from column to row.
        outputs: [N] weight of each output (a probability), 0 for other nodes.

    Raises:
        DataError: the graph has a cycle.
    """
    share = normalised(weights)
    step, total = outputs.to(share) @ share, torch.zeros_like(outputs, dtype=share.dtype)
    for _ in range(len(share)):
        if not bool(step.any()):
            return total
        total, step = total + step, step @ share
    raise DataError("the graph has a cycle", do="give edges from earlier to later sites only")


def cumulative(scores: Tensor) -> Tensor:
    """Of each score, the share of the total that it and all larger ones have (small: important); any shape, not negative."""
    flat = scores.flatten()
    order = flat.argsort(descending=True, stable=True)
    out = torch.empty_like(flat)
    out[order] = flat[order].cumsum(0) / flat.sum().clamp_min(1e-10)
    return out.view_as(scores)


def prune(weights: Tensor, outputs: Tensor, *, nodes: float = 0.8, edges: float = 0.98,
          keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nodes that carry a share of all influence, and the edges among them that carry a share of theirs.

    Nodes left without an edge in or without one out are dropped too, until none is; inputs need none in, outputs none out.

    Args:
        weights, outputs: see `influence`.
        nodes: share of the total influence to keep.
        edges: share of the total edge score N_vu (I_v + w_v), over the nodes kept, to keep.
        keep: [N] bool, nodes that always stay (inputs: tokens, errors); outputs always do.

    Returns:
        [N] bool and [N, N] bool.
    """
    fixed = outputs > 0 if keep is None else keep | (outputs > 0)
    own = influence(weights, outputs)
    on = fixed | _most(own, nodes)
    left = weights * on[:, None] * on[None, :]
    score = normalised(left) * (influence(left, outputs) + outputs.to(own))[:, None]
    links = _most(score, edges) & (left != 0)
    while True:
        alone = on & ~fixed & ~(links.any(0) & links.any(1))
        if not bool(alone.any()):
            return on, links
        on = on & ~alone
        links = links & on[:, None] & on[None, :]


def _most(scores: Tensor, share: float) -> Tensor:
    """The largest scores that together have at least `share` of the total."""
    before = cumulative(scores) - scores / scores.sum().clamp_min(1e-10)  # what larger ones have already
    return (scores > 0) & (before < share)
