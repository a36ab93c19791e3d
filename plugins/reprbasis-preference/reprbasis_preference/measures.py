"""The preference P = cos(target, what a component writes), the numbers beside it, and what chance gives.

Shapes: N sources, M targets, C components, D residual width.
"""

from dataclasses import dataclass

import torch
from scipy.special import betainc, erfc
from torch import Tensor


@dataclass(frozen=True)
class Preference:
    """Preference of a component's output y for a target t. All tensors have one shape.

    Args:
        p: cos(t, y), in [-1, 1]; 0 where y is 0. Its sign matters: a component may suppress.
        gain: component of y along t, in units of the stream. Sort by it: P alone is noise where a component writes little.
        rel: |y| / |x|, x what the component read; NaN where that is not known.
    """

    p: Tensor
    gain: Tensor
    rel: Tensor

    @property
    def p01(self) -> Tensor:
        """(1 + P) / 2: in (0, 1), above one half where the component writes along the target."""
        return (1 + self.p) / 2


def measure(y: Tensor, target: Tensor, x: Tensor | None = None) -> Preference:
    """Preference of outputs y [..., D] for targets [..., D] (any length); x [..., D] is what was read."""
    size = y.norm(dim=-1)
    gain = (y * unit(target)).sum(-1)
    rel = torch.full_like(size, torch.nan) if x is None else size / x.norm(dim=-1)
    return Preference(ratio(gain, size), gain, rel.expand_as(gain))


def unit(x: Tensor) -> Tensor:
    """Rows [..., D] of length 1; zero rows stay zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def ratio(gain: Tensor, size: Tensor) -> Tensor:
    """Gain over size, 0 where the size is 0."""
    return torch.where(size > 0, gain / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)


def isotropic(p: Tensor, d: int) -> Tensor:
    """F(P): share of random directions of R^d with a smaller cosine, exactly. (1 + P) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2)."""
    half = (d - 1) / 2
    return torch.as_tensor(betainc(half, half, ((1 + p.double().cpu()) / 2).clamp(0, 1).numpy()))


def largest_by_chance(n: int, d: int) -> float:
    """About the largest P of n components of random direction, sqrt(2 ln n / d): 0.14 for 270 heads at d = 576."""
    return float((2 * torch.tensor(float(n)).log() / d).sqrt())


def z_values(p: Tensor, null: Tensor) -> Tensor:
    """(P - mean) / sd against a null [R, ...]; 0 where the null does not vary (a component that writes nothing)."""
    sd = null.std(0)
    return torch.where(sd > 0, (p - null.mean(0)) / sd.clamp_min(torch.finfo(sd.dtype).tiny), 0.0)


def q_values(z: Tensor, *, tests: int | None = None) -> Tensor:
    """Two-sided p values of z (normal tail), corrected for multiple testing; any shape.

    Benjamini & Hochberg 1995: the largest share of false discoveries when everything up to this value is called a discovery.

    Args:
        z: the values looked at.
        tests: how many were made, if z holds only some of them; then q is an upper bound.
    """
    p = torch.from_numpy(erfc(z.double().abs().cpu().numpy() / 2**0.5)).flatten()
    order = p.argsort(descending=True)
    rank = torch.arange(len(p), 0, -1, dtype=torch.float64)
    worst_first = (p[order] * (tests or len(p)) / rank).cummin(0).values.clamp_max(1)
    return torch.empty_like(p).index_copy_(0, order, worst_first).view(z.shape)
