"""Options of the learner `jumprelu`."""

from typing import Literal

from pydantic import Field

from reprbasis.kits.affine_config import AffineConfig


class JumpReLUConfig(AffineConfig):
    """A dictionary whose latents fire above learned thresholds."""

    sparsity: Literal["target", "l0", "tanh"] = "target"
    """`target`: quadratic pull of the mean L0 to `target_l0`; `l0`: a price per firing latent; `tanh`: the price
    saturates smoothly in the code.
    """

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of firing latents to aim at (and the scale of the default `coefficient`); None: D / 16, at least
    4.
    """

    site_limit: float | None = Field(default=1.5, ge=1)
    """`target` only: the mean L0 of any single site is pulled below this multiple of `target_l0`; None: only the
    overall mean counts.
    """

    coefficient: float | None = Field(default=None, ge=0)
    """Weight of the sparsity term; None: 1 for `target`, 0.1 / `target_l0` (share of variance per firing latent)
    otherwise.
    """

    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the sparsity term rises linearly from 0."""

    threshold: float | None = Field(default=None, ge=0)
    """Initial threshold, in standard deviations of the pre-activations at the start; None: so high that `target_l0`
    latents fire.
    """

    bandwidth: float = Field(default=0.25, gt=0)
    """Width of the window around the threshold in which it receives gradient, in the same unit."""

    threshold_lr: float = Field(default=4.0, gt=0)
    """Learning rate of thresholds and encoder biases as a multiple of that of the weights (their natural scale is
    larger).
    """

    revive: float = Field(default=1e-4, ge=0)
    """Weight of the loss that brings dead latents towards their thresholds; 0 turns it off."""
