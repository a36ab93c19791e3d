"""Options of the evaluator."""

from pydantic import Field

from reprbasis import ComponentConfig, Sites


class ManifoldConfig(ComponentConfig):
    """Options of `manifold`."""

    sites: Sites = "resid.*"
    """Sites of the stream, in order; those that the basis covers and that were harvested are compared."""
    share: float = Field(0.125, gt=0, lt=1)
    """Size k of each layer's subspace, as a share of the width D."""
    distances: tuple[int, ...] = Field((1, 2, 4, 8, 16), min_length=1)
    """Distances between layers, in steps of `sites`."""
    tokens: int = Field(1500, ge=16)
    """Held-out tokens (up to this many). Cost: a forward, and 2 * tokens * sites² * D * k FLOPs."""
    sequence_tokens: int = Field(128, ge=8)
    """Tokens of each held-out sequence that are used, counted from its start."""
    code_tokens: int = Field(400, ge=8)
    """Of these, tokens whose codes are compared at every site. Memory: tokens * sites * latents * 4 bytes."""
    every: int = Field(4, ge=1)
    """Latents of one layer are tried on the others at every so manieth of `sites`."""
    latents: float = Field(0.1, gt=0, lt=1)
    """How many latents stand for a layer, as a share of all: those with the most energy there."""
    removed: int = Field(48, ge=0)
    """Latents that are removed from one token each, at three sites, to see what is left of them later; 0: none."""
    draws: int = Field(20, ge=8)
    """Random subspaces."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap draws (whole sequences are drawn) for the 95 % intervals."""
