"""Is there an alignment? Held-out figures of a map, each beside what it would be if there were none.

Shapes: N training pairs, M held-out pairs, A and B widths of the two spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import DataError
from ..interfaces.aligner import Aligner, Alignment
from ..interfaces.evaluator import Measurement
from .intervals import Estimate, mean, ratio
from .similarity import centred_cosine, cka, mutual_knn, permuted_within, retrieval

CONDITIONS: Final = {
    "map": "the map, fitted to the training pairs",
    "permuted": "control: fitted to the same rows, paired at random",
    "same-frequency": "control: fitted to rows paired at random among tokens of about the same frequency",
    "random": "control: a random (semi-)orthogonal map between the means",
    "identity": "baseline: no map but the means, for equal widths",
}
MEASURES: Final = {
    "r2": "share of the held-out variance that is explained; negative: worse than the mean",
    "cosine": "cosine to the truth, both centred with the training mean",
    "retrieval@1": "the right row is the nearest of all held-out rows (CSLS)",
    "retrieval@5": "it is among the nearest five",
}
LARGEST: Final = 4096
"""Held-out rows used for figures that compare all rows with all rows."""


def judge(aligner: Aligner[Any], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], group: Tensor, *,
          tokens: Tensor | None = None, seed: int = 0, resamples: int = 1000) -> tuple[Alignment, list[Measurement]]:
    """Fit to the training pairs and measure on the others; never a score on pairs that were fitted.

    Args:
        aligner: makes the map.
        train: [N, A], [N, B]; test: [M, A], [M, B]: rows of other texts.
        group: [M] text of each held-out row; intervals resample whole texts.
        tokens: [N] token ids of the training rows, for the control `same-frequency`; None leaves it out.
        seed: of the controls.
        resamples: bootstrap draws.

    Returns:
        The map (with the figures of condition `map` in its details), and a measurement for each of `MEASURES` and each of
        `CONDITIONS` that applies.

    Raises:
        DataError: fewer than 20 held-out rows.
    """
    if len(test[0]) < 20:
        raise DataError(f"{len(test[0])} held-out pairs cannot judge an alignment", do="pair more text")
    generator = torch.Generator().manual_seed(seed)
    a, b = train
    found = aligner.fit(a, b)
    maps = {"map": found, "permuted": aligner.fit(a, b[torch.randperm(len(b), generator=generator)])}
    if tokens is not None:
        maps["same-frequency"] = aligner.fit(a, b[permuted_within(deciles(tokens), generator)])
    wide = max(a.shape[1], b.shape[1])
    turn = torch.linalg.qr(torch.randn(wide, wide, generator=generator)).Q[:a.shape[1], :b.shape[1]].to(a)
    maps["random"] = Alignment(turn, turn.T, a.mean(0), b.mean(0))
    if a.shape[1] == b.shape[1]:
        eye = torch.eye(a.shape[1]).to(a)
        maps["identity"] = Alignment(eye, eye, a.mean(0), b.mean(0))
    out: list[Measurement] = []
    for condition, one in maps.items():
        for name, estimate in held_out(one, *test, group, b.mean(0), resamples=resamples).items():
            out.append(Measurement(name, estimate.value, estimate.n, estimate.low, estimate.high, condition))
    details = {**found.details, "held_out": {m.name: m.value for m in out if m.condition == "map"}}
    return Alignment(found.matrix, found.inverse, found.mean_a, found.mean_b, details), out


def held_out(alignment: Alignment, a: Tensor, b: Tensor, group: Tensor, middle: Tensor, *,
             resamples: int = 1000) -> dict[str, Estimate]:
    """The figures of `MEASURES` on held-out pairs; `middle` [B] is the mean of the second space in training."""
    guess = alignment.forward(a)
    few = slice(0, LARGEST)
    ranks = retrieval(guess[few] - middle, b[few] - middle)
    lost = (guess - b).square().sum(-1)
    return {"r2": ratio(lost, (b - middle).square().sum(-1), group, resamples=resamples).complement(),
            "cosine": mean(centred_cosine(guess, b, middle), group, resamples=resamples),
            "retrieval@1": mean((ranks < 1).double(), group[few], resamples=resamples),
            "retrieval@5": mean((ranks < 5).double(), group[few], resamples=resamples)}


def without_map(a: Tensor, b: Tensor, group: Tensor, *, k: int = 10, seed: int = 0, resamples: int = 1000) -> list[Measurement]:
    """Figures that need no map, beside the same with the pairing broken: mutual k nearest neighbours, unbiased linear CKA.

    Args:
        a: [M, A]; b: [M, B]; group: [M].
        k: neighbours; chance is k / (M - 1).
    """
    a, b, group = a[:LARGEST], b[:LARGEST], group[:LARGEST]
    a, b = a - a.mean(0), b - b.mean(0)
    order = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))
    out = []
    for condition, other in (("map", b), ("permuted", b[order])):
        shared = mean(mutual_knn(a, other, k), group, resamples=resamples)
        out.append(Measurement(f"mutual-knn@{k}", shared.value, shared.n, shared.low, shared.high, condition))
        out.append(Measurement("cka", cka(normalize(a, dim=-1), normalize(other, dim=-1)), len(a), None, None, condition))
    return out


def deciles(tokens: Tensor) -> Tensor:
    """[N] decile of how often each row's token occurs among the rows."""
    _, where, counts = torch.unique(tokens, return_inverse=True, return_counts=True)
    often = counts[where].double()
    edges = torch.quantile(often, torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    return torch.bucketize(often, edges)


def verdict(measurements: Sequence[Measurement]) -> str:
    """In words: is the map better than every control? `identity` is none: spaces that are alike unmapped are aligned, too."""
    best = {c: next((m for m in measurements if m.name == "cosine" and m.condition == c), None)
            for c in CONDITIONS if c != "identity"}
    ours = best.pop("map")
    rivals = {c: m for c, m in best.items() if m is not None}
    if ours is None or not rivals:
        return "nothing to compare"
    name, rival = max(rivals.items(), key=lambda item: item[1].value)
    low = ours.value if ours.low is None else ours.low
    high = rival.value if rival.high is None else rival.high
    if low > high:
        return f"aligned: held-out cosine {ours.value:.3f} against {rival.value:.3f} of the best control ({name})"
    return f"no alignment shown: held-out cosine {ours.value:.3f}, the control '{name}' reaches {rival.value:.3f}"

