"""What of a cloud of vectors lies where the unembedding looks: the measures of the evaluator `unembedding`, on plain tensors.

The unembedding has full rank, so "lies in its row space" is true of anything. The question is whether vectors prefer the
directions it amplifies most: the first k right singular vectors of its weight, as a share of all D.

Shapes: V vocabulary, D width, k dimensions, N vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.interfaces.model import Unembedding
from reprbasis.kits.intervals import Estimate, ratio
from reprbasis.kits.subspaces import draws, principal, share, spectrum

VARIANTS = ("centred", "gain", "raw")
"""`raw`: the weight; `gain`: with the final norm's gain folded in; `centred`: with the mean row taken off as well, which the
softmax does not see. The first is judged."""


@dataclass(frozen=True)
class Frame:
    """Directions [D, D] by how much they are amplified, the most first, and the squares of their singular values [D]."""

    vectors: Tensor
    power: Tensor


def gram(weight: Tensor, block: int = 8192) -> Tensor:
    """[D, D] weight.T @ weight in float64, in blocks of rows. Cost: 2 V D² FLOPs."""
    total = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for part in weight.split(block):
        wide = part.detach().double().cpu()
        total.addmm_(wide.T, wide)
    return total


def frames(out: Unembedding) -> dict[str, Frame]:
    """Variant -> frame. Permuting the rows of the weight changes none of them, so it would be no null."""
    whole = gram(out.weight)
    mean, gain = out.weight.detach().double().mean(0).cpu(), out.gain.detach().double().cpu()
    centred = whole - len(out.weight) * torch.outer(mean, mean)
    grams = {"centred": gain[:, None] * centred * gain, "gain": gain[:, None] * whole * gain, "raw": whole}
    return {name: Frame(*principal(grams[name])) for name in VARIANTS}


def size(share_of: float, d: int) -> int:
    """K of a share of the width, at least 1."""
    return min(max(round(share_of * d), 1), d)


def concentration(x: Tensor, frame: Tensor, k: int, group: Tensor, *, bottom: bool = False,
                  resamples: int = 1000) -> Estimate:
    """Share of the variance of vectors x [N, D] about their mean that lies in the first (or last) k columns; draws groups [N]."""
    offset = x - x.mean(0)
    part = frame[:, -k:] if bottom else frame[:, :k]
    return ratio((offset @ part.to(offset)).square().sum(1), offset.square().sum(1), group, resamples=resamples)


@dataclass(frozen=True)
class Null:
    """What a share would be if the subspace had nothing to do with the vectors: mean and the middle 95 % of the draws."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> "Null":
        """From one value a draw."""
        low, high = values.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        middle = float(values.double().mean())
        return cls(middle, min(low, middle), max(high, middle))


@dataclass(frozen=True)
class Nulls:
    """Null shares of one site.

    Args:
        haar: k -> random subspaces. A weight turned at random (W Q) keeps its singular values and has Haar-random singular
            vectors, so for shares it is the same null; both leave the covariance as it is.
        permuted: the first k vectors of the frame with their coordinates permuted.
        rotated: the weighted share under a weight turned at random.
    """

    haar: Mapping[int, Null]
    permuted: Null
    rotated: Null


class Turns:
    """Squared entries of `count` random rotations [D, D], drawn once and used for every site.

    Turning a covariance is as good as turning its diagonal form, so the variance along the columns of a random frame is
    `squares @ eigenvalues`: 2 D² FLOPs a draw instead of 2 D³.
    """

    def __init__(self, d: int, count: int, seed: int) -> None:
        self.squares = torch.stack([q.square().float() for q in draws(d, count, seed)])

    def profiles(self, cov: Tensor) -> Tensor:
        """[count, D] variances of a covariance [D, D] along the columns of each random frame."""
        return self.squares @ principal(cov)[1].float()


def nulls(cov: Tensor, frame: Frame, sizes: Sequence[int], k: int, turns: Turns, seed: int) -> Nulls:
    """Null shares for a covariance [D, D], for each of the sizes and the judged k. Cost: 2 D² k FLOPs a draw."""
    generator = torch.Generator().manual_seed(seed)
    turned, narrow, d = turns.profiles(cov), cov.float(), len(cov)
    first, total = frame.vectors[:, :k].float(), float(cov.trace())
    mixed = torch.stack([spectrum(narrow, first[torch.randperm(d, generator=generator)]).sum() / total for _ in turned])
    return Nulls({size: Null.of(share(turned, size)) for size in {*sizes, k}}, Null.of(mixed),
                 Null.of(weighted(turned, frame.power)))


def weighted(profile: Tensor, power: Tensor) -> Tensor:
    """[...] logit variance that variances [..., D] along a frame cause, over what the same variance spread evenly would cause.

    1: the vectors do not care for the weight; above 1: they prefer what it amplifies. Needs no k.
    """
    power = power.to(profile)
    return (profile * power).sum(-1) / profile.sum(-1) / power.mean()


def atom_share(rows: Tensor, frame: Tensor, k: int) -> Tensor:
    """[K] share of the squared length of each row [K, D] that lies in the first k columns of a frame."""
    return (rows @ frame[:, :k].to(rows)).square().sum(1) / rows.square().sum(1).clamp_min(torch.finfo(rows.dtype).tiny)


def output_score(rows: Tensor, weight: Tensor, block: int = 256) -> Tensor:
    """[K] how far the most promoted token of each row [K, D] stands out: its logit in standard deviations over the vocabulary.

    Args:
        rows: directions.
        weight: [V, D] centred, with the norm's gain folded in.
    """
    out = []
    for part in rows.split(block):
        logits = part.to(weight) @ weight.T
        out.append(((logits.amax(1) - logits.mean(1)) / logits.std(1).clamp_min(1e-30)).cpu())
    return torch.cat(out)


def like(cov: Tensor, count: int, seed: int) -> Tensor:
    """[count, D] directions from a Gaussian of this covariance [D, D]: as anisotropic as the activations, but no features."""
    frame, values = principal(cov)
    noise = torch.randn(count, len(cov), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (noise * values.sqrt() @ frame.T).float()


def verdict(found: Estimate, against: list[Null]) -> str:
    """`holds` if the interval of a share lies above every null, `fails` if below the mean of one of them, else `open`."""
    low, high = (found.value if v is None else v for v in (found.low, found.high))
    if all(low > null.high for null in against):
        return "holds"
    return "fails" if any(high < null.mean for null in against) or found.value <= max(n.mean for n in against) else "open"
