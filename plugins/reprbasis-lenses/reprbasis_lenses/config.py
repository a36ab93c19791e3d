"""Options of the lenses, the step and the evaluators."""

from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Selection, Sites, Use


class LogitConfig(ComponentConfig):
    """Options of `logit`."""

    norm: bool = True
    """Whether the model's final norm comes before the unembedding."""


class ContrastiveConfig(ComponentConfig):
    """Options of `contrastive`."""

    rescale: bool = True
    """Whether deviations from the site's mean are also scaled to their usual size at the last site."""


class RidgeConfig(ComponentConfig):
    """Options of `ridge`."""

    rows: int = Field(50_000, ge=50)
    """Training tokens used at most, drawn at random."""
    penalties: tuple[float, ...] = Field((1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1)
    """Ridge penalties to choose from, in units of the mean variance of a coordinate; chosen on a fifth of the training texts."""


class TunedConfig(ComponentConfig):
    """Options of `tuned`."""

    start: Literal["identity", "ridge"] = "identity"
    """Where training starts: at the logit lens, or at the closed-form map of the lens `ridge`."""
    rows: int = Field(8192, ge=50)
    """Training tokens used at most, drawn at random."""
    steps: int = Field(250, ge=1)
    """Optimiser steps for each site."""
    batch: int = Field(256, ge=1)
    """Tokens of a step."""
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate (Adam, falling linearly to 0), in units where activations and readings have mean square 1."""
    vocabulary: int | None = Field(4096, ge=2)
    """Tokens whose logits are computed in a step: half of them the likeliest ones, half drawn anew each time from the rest and
    weighted up, so that the divergence stays an estimate of the full one. null: all."""


class LensStepConfig(ComponentConfig):
    """Options of the step `lens`."""

    lens: Annotated[Selection, Use("lens")]
    """The lens and its options."""
    sites: Sites = "*"
    """Which of the harvested sites it learns to read."""


class LensesConfig(ComponentConfig):
    """Options of the evaluator `lenses`."""

    lenses: tuple[Annotated[Selection, Use("lens")], ...] = Field(("logit", "contrastive", "ridge"), validate_default=True,
                                                                  min_length=1)
    """Lenses that are compared; those that learn are fitted to the training tokens first."""
    sites: Sites = "resid.*"
    """Sites that are read."""
    tokens: int = Field(1500, ge=16)
    """Held-out tokens that are read (up to this many). Cost: 2 * tokens * D * V FLOPs for each lens and site."""
    sequence_tokens: int = Field(128, ge=8)
    """Tokens of each held-out sequence that are used, counted from its start."""
    shuffled: bool = True
    """Whether to measure the control: each fitted lens with what it learned for another site."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap draws (whole sequences are drawn) for the 95 % intervals."""
    shown_tokens: int = Field(24, ge=0)
    """Tokens of the page that shows what every site reads as, for one held-out text; 0: no page."""


class UnembeddingConfig(ComponentConfig):
    """Options of the evaluator `unembedding`."""

    sites: Sites = ("embed", "resid.*")
    """Sites of the stream for which H3a to H3c are judged."""
    components: Sites = ("attn_out.*", "mlp_out.*")
    """Sites whose concentration is measured for H3d."""
    shares: tuple[float, ...] = Field((0.0625, 0.125, 0.25, 0.5), min_length=1)
    """Sizes k of the subspaces, as shares of the width D."""
    judged: float = 0.125
    """The share by which concentration is judged."""
    tokens: int = Field(2500, ge=64)
    """Held-out tokens whose activations are measured (up to this many)."""
    sequence_tokens: int = Field(160, ge=8)
    """Tokens of each held-out sequence that are used, counted from its start."""
    norm_cap: float = Field(4.0, gt=0)
    """Tokens whose norm is more than this many times the median are left out, like position 0; `all tokens` counts them in."""
    draws: int = Field(50, ge=8)
    """Random subspaces of each null."""
    read: Sites = "resid.*"
    """Sites that are read with lenses for H3a; they must be harvested."""
    read_tokens: int = Field(800, ge=16)
    """Held-out tokens that are read and run through filters."""
    filtered: Sites = "resid.4::5"
    """Sites of the stream at which subspaces are kept and the rest is set to the mean, for H3c."""
    kept: tuple[float, ...] = (0.5, 0.75)
    """Sizes of the subspaces that the filters keep, as shares of D. Cost: a part of a forward each, 7 times."""
    atoms: int = Field(2048, ge=16)
    """Dictionary rows measured for H3d, drawn at random."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap draws (whole sequences are drawn) for the 95 % intervals."""
