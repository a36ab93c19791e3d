"""The intervention: add a vector to a site.

Shapes: B batch, T tokens, D width.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from reprbasis.sites import Site


@dataclass(frozen=True)
class Steer:
    """An `Edit` that adds `vector` [D] at the chosen real tokens and changes nothing elsewhere.

    Args:
        site: where.
        vector: what, in the site's own units.
        positions: `all`, `prompt` (tokens that were not generated), `generated`, or `special`.
    """

    site: Site
    vector: Tensor = field(repr=False)
    positions: Literal["all", "prompt", "generated", "special"] = "all"

    def __call__(self, x, batch):
        """[B, T, D] -> [B, T, D]."""
        where = batch.mask
        if self.positions != "all":
            flag = batch.flag("special" if self.positions == "special" else "generated")
            where = where & (~flag if self.positions == "prompt" else flag)
        return torch.where(where[..., None], x + self.vector.to(x), x)


def scale(activations, site):
    """Root mean square norm of the site in training, position 0 left out: the unit of relative strengths."""
    return activations.stats.power[site] ** 0.5


def of_latent(basis, site, latent, alpha):
    """[D] what steering with `alpha` units of a latent's code adds: FAST's z + alpha d_k, in the site's own units."""
    return alpha * basis.directions(site)[latent]
