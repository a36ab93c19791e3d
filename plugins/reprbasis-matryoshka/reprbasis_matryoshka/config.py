"""Options of the learner `matryoshka`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from reprbasis.kits.affine_config import AffineConfig

Share = Annotated[float, Field(gt=0, le=1)]


class MatryoshkaConfig(AffineConfig):
    """A dictionary whose first latents reconstruct on their own, in nested prefixes."""

    k: int | None = Field(default=None, ge=1)
    """Latents that fire per row, on average over a batch; None: D / 16, at least 4."""

    prefixes: tuple[Share, ...] = (1 / 16, 1 / 4, 1)
    """Nested prefixes as shares of the width, rising; the last is 1."""

    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Weight of each prefix in the reconstruction term (scaled to sum to 1); None: equal."""

    aux: float = Field(default=1 / 32, ge=0)
    """Weight of the loss that lets dead latents reconstruct the residual (AuxK); 0 turns it off."""

    threshold_rate: float = Field(default=0.01, gt=0, le=1)
    """Step of the running mean of the smallest kept code, which becomes the threshold of the shipped dictionary."""

    @model_validator(mode="after")
    def _nested(self) -> Self:
        if list(self.prefixes) != sorted(set(self.prefixes)) or not self.prefixes or self.prefixes[-1] != 1:
            raise ValueError("prefixes must rise and end with 1, for example [0.0625, 0.25, 1]")
        if len(self.prefixes) > self.width:
            raise ValueError(f"{len(self.prefixes)} prefixes need a width of at least as many latents")
        if self.weights is not None and len(self.weights) != len(self.prefixes):
            raise ValueError(f"give one weight for each of the {len(self.prefixes)} prefixes")
        return self
