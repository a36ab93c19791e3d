"""Binary codes: entropy, bursts, surprisal, packing. A sparse code is read as the bits `z != 0`.

The entropy of a set of bits here is the sum of the entropies of its single bits, which is at least the entropy of all bits
together; `CodeEntropy` also holds tighter bounds. All entropies are in bits.

Shapes: N rows, K bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of a bit that is 1 with probability p, elementwise, in float32 or wider; exactly 0 at 0 and 1."""
    p = p.to(torch.promote_types(p.dtype, torch.float32))
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)


def majority(rate: Tensor) -> Tensor:
    """[K] bool: the commoner value of each bit, given its mean; 0 where both are equally common."""
    return rate > 0.5


def bursts(bits: Tensor, rate: Tensor) -> Tensor:
    """[..., K] bool: where a bit has its rarer value (Cho et al. 2025, arXiv 2509.20997, "burstiness").

    A bit may be 1 by default, so being 1 says nothing; differing from the default does.

    Args:
        bits: [..., K] bool, or numbers 0 and 1.
        rate: [K] mean of each bit over the set that defines the default.
    """
    return (bits != 0) != majority(rate)


def surprisal(bits: Tensor, rate: Tensor) -> Tensor:
    """[..., K] information in each bit, -log2 P(observed value); its mean over the rows, summed over bits, is the entropy.

    The published burstiness log2 |b - rate| has the same order and no unit. Arguments as in `bursts`.
    """
    rate = rate.to(torch.promote_types(rate.dtype, torch.float32))
    return -torch.where(bits != 0, rate, 1 - rate).log2()


def pack(bits: Tensor) -> Tensor:
    """[N, K] bool -> [N, ceil(K / 8)] uint8. `bursts` packed instead keep everything too: unpack and compare with `majority`."""
    return torch.from_numpy(np.packbits((bits != 0).cpu().numpy(), axis=-1))


def unpack(packed: Tensor, k: int) -> Tensor:
    """Inverse of `pack`: [N, ceil(K / 8)] uint8 -> [N, k] bool."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=k)).bool()


@dataclass(frozen=True)
class CodeEntropy:
    """What N codes of K bits say about their entropy, in bits.

    Args:
        n: rows.
        live: bits that are not constant.
        marginal: sum of the entropies of single bits: an upper bound, equal to the joint entropy if bits are independent.
        tree: the bound that also uses the dependencies along the best tree (Chow & Liu 1968); at most `marginal`.
        joint: plug-in entropy of whole codes with the Miller-Madow correction, never above `ceiling`; only meaningful while
            `distinct` is far below n.
        distinct: different codes seen.
        ceiling: log2 n, the most that n rows can show of a joint entropy.
        bias: how much `marginal` underestimates for independent rows, live / (2 n ln 2) (Miller & Madow).
    """

    n: int
    live: int
    marginal: float
    tree: float
    joint: float
    distinct: int
    ceiling: float
    bias: float


def code_entropy(bits: Tensor, *, tree_bits: int = 512) -> CodeEntropy:
    """Measure [N, K] codes (`z != 0` counts as 1).

    Args:
        bits: codes. Costs 2*N*M^2 FLOPs for the tree over M bits.
        tree_bits: the tree spans this many of the bits with the largest entropy; the others count as independent of it.
    """
    on = bits != 0
    n = len(on)
    rate = on.mean(0, dtype=torch.float64)
    single = binary_entropy(rate)
    marginal, live = float(single.sum()), int((single > 0).sum())
    chosen = single.topk(min(tree_bits, max(live, 1))).indices
    packed = np.ascontiguousarray(pack(on).numpy())
    counts = np.unique(packed.view(f"V{packed.shape[1]}")[:, 0], return_counts=True)[1]
    share = counts / n
    joint = float(-(share * np.log2(share)).sum()) + (len(counts) - 1) / (2 * n * math.log(2))
    return CodeEntropy(n, live, marginal, marginal - _tree_information(on[:, chosen]), min(joint, math.log2(n)), len(counts),
                       math.log2(n), live / (2 * n * math.log(2)))


def _tree_information(on: Tensor) -> float:
    """Largest sum of mutual information along a tree over the bits of [N, M] (Prim 1957)."""
    information = mutual_information(on).fill_diagonal_(-1.0)
    best, outside = information[0].clone(), torch.ones(len(information), dtype=torch.bool)
    outside[0] = False
    total = 0.0
    for _ in range(len(information) - 1):
        nearest = int(torch.where(outside, best, -2.0).argmax())
        total += max(float(best[nearest]), 0.0)
        outside[nearest] = False
        best = torch.maximum(best, information[nearest])
    return total


def mutual_information(on: Tensor) -> Tensor:
    """[M, M] mutual information of each pair of bits of [N, M] bool, plug-in. Costs 2*N*M^2 FLOPs."""
    n = len(on)
    ones = on.float()
    both = (ones.T @ ones).double() / n  # exact: counts below 2^24
    p = both.diagonal().clone()
    cells = (both, p[:, None] - both, p[None] - both, 1 - p[:, None] - p[None] + both)
    pair = -sum((torch.xlogy(c.clamp_min(0.0), c.clamp_min(0.0)) for c in cells), torch.zeros_like(both)) / math.log(2)
    single = binary_entropy(p)
    return single[:, None] + single[None] - pair
