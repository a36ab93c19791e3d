"""Options of the learners `topk` and `batchtopk`."""

from pydantic import Field

from reprbasis.kits.affine_config import AffineConfig


class TopKConfig(AffineConfig):
    """A dictionary that keeps the k largest codes of every row."""

    k: int | None = Field(default=None, ge=1)
    """Latents that fire per row (`batchtopk`: on average over a batch); None: D / 16, at least 4."""

    aux: float = Field(default=1 / 32, ge=0)
    """Weight of the loss that lets dead latents reconstruct the residual (AuxK); 0 turns it off."""


class BatchTopKConfig(TopKConfig):
    """A dictionary that keeps the N*k largest codes of every batch of N rows."""

    threshold_rate: float = Field(default=0.01, gt=0, le=1)
    """Step of the running mean of the smallest kept code, which becomes the threshold of the shipped dictionary."""
