"""Measures of what two depths of a stream have in common, on plain tensors, token by token so that intervals can be drawn.

Shapes: L sites in order, N tokens, D width, K latents, k dimensions.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def pairs(count: int, distance: int) -> Iterator[tuple[int, int]]:
    """(from, to) of all pairs at a distance, in both directions of depth."""
    for i in range(count - distance):
        yield i, i + distance
        yield i + distance, i


def captured(x: Tensor, frame: Tensor) -> Tensor:
    """[N] squared length of rows x [N, D] within the span of `frame` [D, k]."""
    return (x @ frame).square().sum(1)


def stays(first: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    """[N] latents of `first` [N, K] bool that are also on in `later` [N, K] bool, and [N] those of `first`."""
    return (first & later).sum(1).float(), first.sum(1).float()


def spread(codes: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """How far over depth activation is spread (Lawson et al. 2025).

    Args:
        codes: for each of the L sites, activations [N, K], 0 or more.

    Returns:
        [N] sum over latents of activation times the variance of the site index of one latent at one token; [N] sum of activation;
        and [K] variance of the site index of one latent over all tokens, 0 where it is never on.
    """
    mass, first, second = (torch.zeros_like(codes[0]) for _ in range(3))
    for i, z in enumerate(codes):
        mass += z
        first += i * z
        second += i * i * z
    safe = mass.clamp_min(1e-12)
    one = (second / safe - (first / safe).square()).clamp_min(0)
    total = mass.sum(0).clamp_min(1e-12)
    every = (second.sum(0) / total - (first.sum(0) / total).square()).clamp_min(0)
    return (mass * one).sum(1), mass.sum(1), every


def strongest(energy: Tensor, count: int) -> Tensor:
    """[K] bool: the `count` latents of most energy [K]."""
    mask = torch.zeros_like(energy, dtype=torch.bool)
    mask[energy.topk(count).indices] = True
    return mask
