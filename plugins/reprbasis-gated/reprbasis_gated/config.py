"""Options of the learner `gated`."""

from pydantic import Field

from reprbasis.kits.affine_config import AffineConfig


class GatedConfig(AffineConfig):
    """A dictionary whose gates and magnitudes have shared directions but scales and biases of their own."""

    l1: float = Field(default=0.3, ge=0)
    """Weight of the L1 norm of the gates' pre-activations, both measured on data scaled to unit variance."""

    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which `l1` rises linearly from 0."""

    gate_aux: float = Field(default=1.0, gt=0)
    """Weight of the error made when the gates' own pre-activations reconstruct through a frozen decoder; it trains the gates."""

    aux: float = Field(default=1 / 32, ge=0)
    """Weight of the loss that lets dead latents reconstruct the residual (AuxK); 0 turns it off."""
