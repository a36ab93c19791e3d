"""Intervals for means and ratios whose units come in groups (tokens of one dialogue are not independent)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % percentile bootstrap interval; n units in `groups` independent groups (one group: no interval)."""

    value: float
    low: float | None
    high: float | None
    n: int
    groups: int

    def complement(self) -> Estimate:
        """1 - x, and its interval."""
        low, high = (None if v is None else 1 - v for v in (self.high, self.low))
        return Estimate(1 - self.value, low, high, self.n, self.groups)


def ratio(numerator: Tensor, denominator: Tensor, group: Tensor, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """sum(numerator) / sum(denominator), resampling whole groups (Davison & Hinkley 1997, cluster bootstrap).

    Args:
        numerator, denominator: [n]; use ones below for a mean.
        group: [n] integer labels (for example the sequence of each token).
        resamples: bootstrap draws.
        seed: of the draws.
    """
    numerator, denominator, group = numerator.cpu(), denominator.cpu(), group.cpu()
    labels, member = torch.unique(group, return_inverse=True)
    g = len(labels)
    top = torch.zeros(g, dtype=torch.float64).index_add_(0, member, numerator.double())
    bottom = torch.zeros(g, dtype=torch.float64).index_add_(0, member, denominator.double())
    value = float(top.sum() / bottom.sum())
    if g < 2:
        return Estimate(value, None, None, len(group), g)
    draws = torch.randint(g, (resamples, g), generator=torch.Generator().manual_seed(seed))
    values = top[draws].sum(1) / bottom[draws].sum(1)
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high, len(group), g)


def mean(values: Tensor, group: Tensor, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of values, resampling whole groups."""
    return ratio(values, torch.ones_like(values), group, resamples=resamples, seed=seed)
