"""Subspaces of a residual stream: which ones a matrix or a cloud of rows prefers, how much of something lies in them, and nulls.

A frame is a [D, D] orthogonal matrix whose columns are directions, the most important first; its first k columns span a
k-dimensional subspace, its last k the least important one.

Shapes: D width, N rows, k dimensions, V rows of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def covariance(rows: Tensor, mean: Tensor | None = None) -> Tensor:
    """[D, D] mean product of rows [N, D] about `mean` [D] (default: their own), in float64. Cost: 2 N D² FLOPs."""
    x = rows.double()
    x = x - (x.mean(0) if mean is None else mean.double())
    return x.T @ x / len(x)


def principal(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Frame [D, D] and values [D] of a symmetric positive matrix [D, D], largest first.

    Of `weight.T @ weight` it gives the right singular vectors of a [V, D] weight (and the squares of its singular values)
    without a decomposition of V rows. Cost: about 9 D³ FLOPs.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors.flip(1), values.flip(0).clamp_min(0)


def haar(d: int, generator: torch.Generator) -> Tensor:
    """A frame [D, D] drawn evenly from all rotations and reflections (QR with the signs of R; Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    turned: Tensor = q * r.diagonal().sign()
    return turned


def spectrum(cov: Tensor, frame: Tensor) -> Tensor:
    """[D] variance of a covariance [D, D] along each column of a frame [D, D]; its sum is the trace. Cost: 2 D³ FLOPs."""
    return (cov @ frame.to(cov) * frame.to(cov)).sum(0)


def share(profile: Tensor, k: int, *, bottom: bool = False) -> Tensor:
    """[...] share of variances [..., D] along a frame that falls on its first (or last) k columns."""
    part = profile[..., -k:] if bottom else profile[..., :k]
    return part.sum(-1) / profile.sum(-1)


def overlap(one: Tensor, two: Tensor) -> float:
    """Mean squared cosine of the principal angles between the spans of two [D, k] matrices with orthonormal columns.

    1: the same subspace; k / D: what independent random subspaces have on average.
    """
    return float((one.T @ two).square().sum() / one.shape[1])


def keep(x: Tensor, frame: Tensor, mean: Tensor) -> Tensor:
    """Rows [..., D] with nothing left outside `mean` [D] plus the span of `frame` [D, k]: `mean + P (x - mean)`."""
    offset = x - mean
    return mean + offset @ frame @ frame.T


def draws(d: int, count: int, seed: int) -> Iterator[Tensor]:
    """`count` Haar frames [D, D], one at a time."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield haar(d, generator)
