"""Options of the evaluator `steering`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Sites

Positive = Annotated[float, Field(gt=0)]


class SteeringConfig(ComponentConfig):
    """Options of `steering`."""

    site: Sites | None = None
    """Site that is steered (one); null: the middle one of the basis's residual sites."""
    alphas: tuple[Positive, ...] = (0.1, 0.2, 0.4, 0.8)
    """Strengths: length of what is added, as a share of the root mean square norm of the site in training. 0 is always run."""
    latents: int = Field(3, ge=1)
    """Latents that are steered: the first of the ranking."""
    random_latents: int = Field(3, ge=1)
    """Control: latents drawn at random among those that fire at the site and are not in the first tenth of the ranking."""
    random_directions: int = Field(3, ge=1)
    """Control: random directions of the same length."""
    positions: Literal["all", "prompt", "generated", "special"] = "all"
    """Tokens at which it is added. `all` is what FAST does; `special` are the template's own tokens."""
    dialogues: int = Field(1000, ge=1)
    """Training dialogues the ranking is made on (up to this many)."""
    first_position: bool = False
    """Whether the ranking counts position 0, the attention sink, where almost every latent fires at many times its strength."""
    prompts: Path | None = None
    """JSON lines of {"prompt": ..., "check": {...}}, see the README; null: 24 built-in ones."""
    max_prompts: int | None = Field(None, ge=2)
    """Use only the first so many of them."""
    max_new: int = Field(24, ge=1)
    """Tokens of an answer at most; answers are greedy."""
    max_ce: float = Field(0.5, ge=0)
    """Quality is kept while the unsteered model's loss on the answers grows by at most this, nats per token, ..."""
    max_repetition: float = Field(0.1, ge=0)
    """... the share of repeated trigrams by at most this, ..."""
    max_failures: float = Field(0.1, ge=0, le=1)
    """... and the share of answers that fail their check by at most this."""
    rounds: int = Field(3, ge=0)
    """Bisections between the last strength that keeps quality and the first that does not."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap draws (whole prompts are drawn) for the 95 % intervals."""
