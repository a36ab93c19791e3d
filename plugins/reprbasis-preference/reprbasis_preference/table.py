"""All components of a layer times all sources times all targets, without ever forming an output of width D.

    gain = (W_V N(f)) . (W_O^T t)        |y|^2 = (W_V N(f))^T (W_O^T W_O) (W_V N(f))

Shapes: C components of the layer, N sources, M targets, R width of a component's inside (a head's E, or D), D residual width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.interfaces.model import AttentionWeights

from .heads import values
from .measures import ratio, z_values


@dataclass(frozen=True)
class Factored:
    """Outputs of components for N sources, factored: `y . t = inside . pull(t)`.

    Args:
        inside: [C, N, R].
        size: [C, N] length of y.
        pull: unit targets [m, D] -> [C, m, R].
    """

    inside: Tensor
    size: Tensor
    pull: Callable[[Tensor], Tensor]

    def gain(self, targets: Tensor) -> Tensor:
        """[m, D] -> [C, N, m]."""
        return self.inside @ self.pull(targets).mT

    def paired(self, targets: Tensor) -> Tensor:
        """P for one unit target of each source: [N, D] -> [C, N]."""
        return ratio((self.inside * self.pull(targets)).sum(-1), self.size)


def factored_ov(weights: AttentionWeights, f: Tensor) -> Factored:
    """Mode `ov` of all heads for sources [N, D]; 2 N D G E + 2 H N E^2 FLOPs, and 2 m D H E for m targets."""
    inside = values(weights, f)
    gram = weights.W_O.mT @ weights.W_O
    size = torch.einsum("hne,hef,hnf->hn", inside, gram, inside).clamp_min(0).sqrt()
    return Factored(inside, size, lambda t: torch.einsum("md,hde->hme", t.to(inside), weights.W_O))


def factored_output(y: Tensor) -> Factored:
    """One component whose outputs [N, D] are known, for example an MLP."""
    return Factored(y[None], y.norm(dim=-1)[None], lambda t: t.to(y)[None])


@dataclass(frozen=True)
class Preferred:
    """The targets of largest |gain| of every component and source, [C, N, k], largest first."""

    target: Tensor
    p: Tensor
    gain: Tensor
    z: Tensor


@torch.no_grad()
def preferred(outputs: Factored, targets: Tensor, null: Tensor, *, top: int = 8, chunk: int = 1024) -> Preferred:
    """Search all targets in chunks; each P stands against the same component's and source's P for other targets.

    Args:
        outputs: of the components.
        targets: [M, D] of length 1.
        null: [R] indices of targets drawn at random (200 or more).
        top: k; at most M.
        chunk: targets at a time; memory is C N chunk numbers.

    Cost: 2 C N M R FLOPs.
    """
    best = outputs.size.new_zeros(*outputs.size.shape, 0)
    where = torch.zeros_like(best, dtype=torch.long)
    for first in range(0, len(targets), chunk):
        gain = outputs.gain(targets[first:first + chunk])
        here = torch.arange(first, first + gain.shape[-1], device=gain.device).expand_as(gain)
        best, where = torch.cat([best, gain], dim=-1), torch.cat([where, here], dim=-1)
        kept = best.abs().topk(min(top, best.shape[-1]), dim=-1).indices
        best, where = best.gather(-1, kept), where.gather(-1, kept)
    p = ratio(best, outputs.size[..., None])
    chance = ratio(outputs.gain(targets[null]), outputs.size[..., None]).movedim(-1, 0)[..., None]
    return Preferred(where, p, best, z_values(p, chance))
