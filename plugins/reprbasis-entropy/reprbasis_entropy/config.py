"""Options of the evaluators `entropy` and `icl-entropy`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from reprbasis import ComponentConfig, Sites


class EntropyConfig(ComponentConfig):
    """Options of `entropy`."""

    sites: Sites = "*"
    """Sites that are measured, each for itself."""
    tokens: int = Field(1024, ge=16)
    """Held-out tokens that are read (up to this many)."""
    sequence_tokens: int = Field(128, ge=8)
    """Tokens of each held-out sequence that are used, counted from its start."""
    tree_bits: int = Field(256, ge=2)
    """Bits with the largest entropy whose dependencies are measured. Cost: 2 * tokens * tree_bits^2 FLOPs a site."""
    dense: float = Field(0.1, gt=0, lt=0.5)
    """A latent that is active on more than this share of the tokens of a site is dense there."""
    untrained: bool = True
    """Whether to measure the control: the dictionary as the learner initialises it, before any training."""


class ICLConfig(ComponentConfig):
    """Options of `icl-entropy`."""

    pairs: Path | None = None
    """JSON lines of {"question": ..., "answer": ...}; null: countries and their capitals."""
    shots: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 4, 8)
    """Numbers of demonstrations."""
    prompts: int = Field(128, ge=2)
    """Prompts of each design and number of demonstrations. Their logarithm bounds what a joint entropy can show."""
    sites: Sites = "resid.*"
    """Sites that are measured, at the last token of the prompt."""
    tree_bits: int = Field(256, ge=2)
    """Bits with the largest entropy whose dependencies are measured."""
    batch: int = Field(32, ge=1)
    """Prompts in one forward."""
