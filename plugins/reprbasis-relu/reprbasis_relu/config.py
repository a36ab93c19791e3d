"""Options of the learner `relu`."""

from pydantic import Field

from reprbasis.kits.affine_config import AffineConfig


class ReLUConfig(AffineConfig):
    """A dictionary with ReLU codes and an L1 penalty."""

    l1: float = Field(default=0.1, ge=0)
    """Weight of the L1 norm of the codes, both measured on data scaled to unit variance, so that it means the same
    at every width.
    """

    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which `l1` rises linearly from 0."""

    aux: float = Field(default=1 / 32, ge=0)
    """Weight of the loss that lets dead latents reconstruct the residual; 0 turns it off."""
