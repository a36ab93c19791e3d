"""Options of the learner `soft-topk`. Imports no torch."""

from pydantic import Field
from reprbasis import ComponentConfig


class SoftTopkConfig(ComponentConfig):
    """What can be chosen in a pipeline: `learner: {use: soft-topk, width: 4096, k: 32}`."""

    width: int = Field(1024, ge=2)
    """Number of latents K."""

    k: int = Field(32, ge=1)
    """Latents that fire per row, at most; less than the width."""
