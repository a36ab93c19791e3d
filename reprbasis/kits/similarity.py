"""How alike are two spaces, or a prediction and the truth: figures per row, so that intervals can be drawn over documents.

Shapes: N rows, D width, A and B widths of two spaces, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 1024
"""Rows compared at once: memory is 4 N * BLOCK bytes."""


def centred_cosine(x: Tensor, y: Tensor, mean: Tensor) -> Tensor:
    """[N] cosine of x and y [N, D] after taking `mean` [D] off both.

    Without centring a mean shared by all rows alone gives cosines of .2, .5 and .9 at mean/spread .5, 1 and 3.
    """
    return (normalize(x - mean, dim=-1) * normalize(y - mean, dim=-1)).sum(-1)


def neighbours(x: Tensor, k: int) -> Tensor:
    """[N, k] indices of the k rows of largest cosine, self excluded. Cost: 2 N² D FLOPs."""
    unit = normalize(x, dim=-1)
    out = []
    for start in range(0, len(unit), BLOCK):
        scores = unit[start:start + BLOCK] @ unit.T
        rows = torch.arange(len(scores))
        scores[rows, start + rows] = -torch.inf
        out.append(scores.topk(k, dim=-1).indices)
    return torch.cat(out)


def mutual_knn(a: Tensor, b: Tensor, k: int = 10) -> Tensor:
    """[N] share of the k nearest neighbours that paired rows a [N, A], b [N, B] have in common; chance k / (N - 1).

    Source: Huh et al. 2024 (platonic representation hypothesis).
    """
    one, two = neighbours(a, k), neighbours(b, k)
    return (one[:, :, None] == two[:, None, :]).any(-1).float().mean(-1)


def retrieval(guess: Tensor, truth: Tensor, *, csls: int = 10) -> Tensor:
    """[N] rank (0 is best) of the right row of `truth` [N, D] for each row of `guess` [N, D]; chance (N - 1) / 2.

    Similarity is the cosine minus the mean cosine of each truth to its `csls` nearest guesses, which takes away the advantage
    of hubs (CSLS, Conneau et al. 2018); 0: the plain cosine. Centre both beforehand.
    """
    x, y = normalize(guess, dim=-1), normalize(truth, dim=-1)
    hub = x.new_zeros(len(y))
    if csls:
        hub = torch.cat([(y[i:i + BLOCK] @ x.T).topk(min(csls, len(x)), dim=-1).values.mean(-1) for i in range(0, len(y), BLOCK)])
    out = []
    for start in range(0, len(x), BLOCK):
        scores = 2 * (x[start:start + BLOCK] @ y.T) - hub
        own = scores[torch.arange(len(scores)), start + torch.arange(len(scores))]
        out.append((scores > own[:, None]).sum(-1))
    return torch.cat(out)


def cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of paired rows a [N, A], b [N, B] with the unbiased HSIC: 0 in expectation for independent rows.

    The usual biased form gives .65 for independent Gaussians of width 128 at N = 64. Source: Song et al. 2012 (unbiased HSIC),
    Nguyen et al. 2021. Cost: 2 N² (A + B) FLOPs and 16 N² bytes in float64.
    """
    grams = []
    for x in (a, b):
        gram = x.double() @ x.double().T
        grams.append(gram.fill_diagonal_(0))
    n = len(a)

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
        return total / (n * (n - 3))

    both, own = hsic(grams[0], grams[1]), hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])
    return float(both / own.clamp_min(1e-30).sqrt())


def relative(x: Tensor, anchors: Tensor) -> Tensor:
    """[N, M] cosines of rows [N, D] to anchors [M, D]: the same in every rotated copy of a space (Moschella et al. 2023)."""
    return normalize(x, dim=-1) @ normalize(anchors, dim=-1).T


def permuted_within(labels: Tensor, generator: torch.Generator) -> Tensor:
    """[N] a permutation that moves every row to a row of equal label [N] (say its decile of token frequency)."""
    out = torch.arange(len(labels))
    for label in torch.unique(labels):
        where = torch.nonzero(labels == label).flatten()
        out[where] = where[torch.randperm(len(where), generator=generator)]
    return out
