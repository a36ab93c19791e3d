"""Options of the evaluators."""

from pydantic import Field

from reprbasis import ComponentConfig, Sites


class ReconstructionConfig(ComponentConfig):
    """Options of `reconstruction`."""

    tokens: int = Field(512, ge=16)
    """Held-out tokens that are run (up to this many). Cost: about half a forward per site and condition."""
    sequence_tokens: int = Field(128, ge=8)
    """Tokens of each held-out sequence that are used, counted from its start: fewer make room for more sequences."""
    sites: Sites = "*"
    """Sites that are measured one by one."""
    together: Sites = "resid.*"
    """Sites that are also replaced all at once; of a list, each selector is a group of its own (`resid.4::5`: every fifth)."""
    untrained: bool = True
    """Whether to measure the control: the dictionary as the learner initialises it, before any training."""
    per_site: Sites | None = None
    """Sites for which a dictionary of their own is learned as a control, of the width of the global one divided by its sites."""
    per_site_rows: int = Field(200_000, ge=1)
    """Rows each per-site dictionary is trained on."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap draws (whole sequences are drawn) for the 95 % intervals."""


class FastConfig(ComponentConfig):
    """Options of `fast`."""

    tokens: int = Field(2048, ge=16)
    """Held-out tokens that are run (up to this many). Cost: about half a forward per site and condition."""
    sequence_tokens: int = Field(1024, ge=8)
    """Tokens of each held-out dialogue that are used, counted from its start."""
    sites: Sites = "*"
    """Sites that are measured, one by one."""
    behaviour: bool = True
    """Whether to replace each site in the running model: loss, KL and what comes from them. Most of the cost."""
    untrained: bool = True
    """Whether to measure the control: the dictionary as the learner initialises it, before any training."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap draws (whole dialogues are drawn) for the 95 % intervals."""


class AtlasConfig(ComponentConfig):
    """Options of `atlas`."""

    tokens: int = Field(8192, ge=64)
    """Training tokens that are read at every site. Cost: tokens * sites * 2 * D * K FLOPs."""
    features: int = Field(400, ge=1)
    """Feature cards made, drawn at random among the latents that are alive."""
    contexts: int = Field(8, ge=1)
    """Top-activating contexts on a card."""
    window: int = Field(12, ge=1)
    """Tokens shown on each side of the peak."""
    promoted: int = Field(10, ge=1)
    """Promoted and suppressed tokens on a card."""
    stream: str = "resid"
    """Name of the per-layer site over whose layers sharing is measured."""
    control_tokens: int = Field(512, ge=16)
    """Tokens read for the control (the untrained dictionary)."""
