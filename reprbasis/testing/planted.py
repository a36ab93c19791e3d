"""Planted sparse data: rows that are sums of a few of a known set of unit atoms, and how well a dictionary recovers
them.

Shapes: N rows, D width, M atoms, K latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..interfaces.learner import ActivationStats, Rows

ATOMS = 7_368_787
"""Added to the seed of the atoms."""


@dataclass(frozen=True)
class Planted:
    """A source of planted rows `x = sum of l0 atoms times coefficients + noise`, scaled so that mean |x|^2 = D.

    Args:
        atoms: [M, D] unit rows.
        l0: atoms in each row.
        noise: standard deviation of white noise before scaling.
        scales: one factor per site; rows of site s are multiplied by `scales[s]` afterwards.
    """

    atoms: Tensor
    l0: int
    noise: float = 0.0
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def make(cls, d: int = 32, atoms: int = 64, l0: int = 4, *, seed: int = 0, noise: float = 0.0,
             scales: Sequence[float] = (1.0,)) -> Planted:
        """Random atoms, from a stream of their own: a learner that draws with the same seed must not begin with the atoms."""
        generator = torch.Generator().manual_seed(ATOMS + seed)
        return cls(normalize(torch.randn(atoms, d, generator=generator), dim=1), l0, noise, tuple(scales))

    def rows(self, n: int, generator: torch.Generator) -> Rows:
        """N rows; sites take turns, coefficients are uniform in [0.5, 1.5], every row weighs 1."""
        m, d = self.atoms.shape
        which = torch.rand(n, m, generator=generator).topk(self.l0, dim=1).indices
        size = torch.rand(n, self.l0, generator=generator) + 0.5
        x = torch.zeros(n, m).scatter_(1, which, size) @ self.atoms
        x += self.noise * torch.randn(n, d, generator=generator)
        site = torch.arange(n) % len(self.scales)
        power = self.l0 * (1 + 1 / 12) + self.noise**2 * d  # mean |x|^2 but for the overlap of the atoms
        x *= (d / power) ** 0.5 * torch.tensor(self.scales)[site, None]
        zeros = torch.zeros(n, dtype=torch.long)
        return Rows(x, site, zeros, zeros + 1, torch.arange(n), zeros.bool(), torch.ones(n))

    def stats(self, generator: torch.Generator, n: int = 2048) -> ActivationStats:
        """Statistics of n rows."""
        x = self.rows(n, generator).x
        mean = x.mean(0)
        return ActivationStats(x.shape[1], len(self.scales), mean, float(x.square().mean()),
                               float((x - mean).square().sum(1).mean()), x)


def mmcs(atoms: Tensor, directions: Tensor) -> float:
    """Mean over atoms [M, D] of the largest cosine with a direction [K, D] (give only the alive ones)."""
    return float((normalize(atoms, dim=1) @ normalize(directions, dim=1).T).amax(1).mean())
