"""Options every affine dictionary learner has. Imports no torch, so that `config.py` modules may use it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..component import ComponentConfig


class AffineConfig(ComponentConfig):
    """Shared options of learners built on `AffineLearner`."""

    width: int = Field(ge=1)
    """Number of latents K of the dictionary."""

    dead_after: float = Field(default=0.02, gt=0, le=1)
    """A latent that has not fired for this share of the training rows counts as dead and is revived."""

    centre: Literal["mean", "median", "zero"] = "mean"
    """Decoder bias to start from: the mean of the data, their geometric median (which outliers hardly move), or 0."""
