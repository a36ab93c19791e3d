"""Options of the learner `bae`."""

from typing import Literal

from pydantic import Field

from reprbasis.kits.affine_config import AffineConfig


class BAEConfig(AffineConfig):
    """A dictionary of bits that pay for their entropy."""

    entropy: float = Field(default=1e-3, ge=0)
    """Price of one bit of marginal entropy, as a share of the variance of the data. A bit of rate p and decoder row w survives
    if p (1 - p) |w|^2 / V exceeds this times its entropy.
    """

    covariance: float = Field(default=1e-4, ge=0)
    """Weight of the sum of absolute covariances between different bits, in the same unit; keeps bits from sharing a cause."""

    covariance_bits: int | None = Field(default=1024, ge=2)
    """Bits among which covariances are taken in one step: a fresh random choice of those that are not constant, rescaled so that
    the mean is right. None: all of them (exact; costs 4*N*M^2 FLOPs for M of them).
    """

    start: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps before entropy and covariance cost anything."""

    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which their weights then rise linearly."""

    gradient: Literal["sigmoid", "identity", "reference", "printed"] = "sigmoid"
    """What stands for the derivative of the step: of a sigmoid; 1 (straight through); as in the released code, G (1 - G) with the
    incoming gradient G; as printed in the paper, a (1 - a) with the pre-activation a. The last two are for comparison only.
    """

    temperature: float = Field(default=4.0, gt=0)
    """Width of the sigmoid, in units of the pre-activation (whose spread at the start is about 0.6); biases and decoder learn
    this many times as fast as the encoder. Small widths leave bits where they first fell: several bits for one cause.
    """

    revive: float = Field(default=0.0, ge=0)
    """Weight of the loss that brings bits which have been constant for long back to where the data are. 0: a bit that does not
    pay for itself stays constant, as the method intends.
    """

    merge: float | None = Field(default=0.99, gt=0.5, le=1)
    """At the end, bits whose correlation is at least this, in size, become one; None: never."""
