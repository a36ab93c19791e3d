"""Area under the ROC curve: the probability that a positive scores higher than a negative, ties counted half.

Shapes: n items, K scores of each, L labels, R resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """[K, L] area of every score for every label, from ranks (Mann and Whitney 1947); NaN where a side is empty.

    Args:
        scores: [n, K].
        positive: [n, L] bool.

    Cost: sorts n * K numbers.
    """
    n, columns = scores.shape[0], scores.T.contiguous()
    ordered = columns.sort(dim=1).values
    ranks = (torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True) + 1).double() / 2
    many = positive.sum(0).double()
    return (ranks @ positive.double() - many * (many + 1) / 2) / (many * (n - many))


def resampled(scores: Tensor, positive: Tensor, group: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """[R] areas of one score when whole groups are drawn with replacement; NaN for draws without one side.

    Args:
        scores: [n]; positive: [n] bool; group: [n] integer labels (the scene of each token).
        resamples: R.
        generator: of the draws: equal states give equal draws of the same groups.
    """
    labels, member = torch.unique(group, return_inverse=True)
    drawn = torch.randint(len(labels), (resamples, len(labels)), generator=generator)
    times = torch.zeros(resamples, len(labels), dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    weight = times[:, member]
    values, place = torch.unique(scores, return_inverse=True)
    high, low = (torch.zeros(resamples, len(values), dtype=torch.float64).index_add_(1, place[side], weight[:, side])
                 for side in (positive, ~positive))
    below = low.cumsum(1) - low / 2
    return (high * below).sum(1) / (high.sum(1) * low.sum(1))
