"""Options of the evaluator `interpret` and of the judges."""

from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Selection, Sites, Use

Protocol = Literal["detection", "fuzzing", "comsem"]
Control = Literal["shuffled", "random", "untrained"]


class InterpretConfig(ComponentConfig):
    """Options of `interpret`."""

    judge: Annotated[Selection, Use("judge")] = Field("lexical", validate_default=True)
    """Who explains and recognises."""
    sites: Sites | None = None
    """Sites whose latents are judged, each for itself; null: the middle one of the basis's residual sites."""
    features: int = Field(60, ge=2)
    """Latents judged at each site, drawn at random among those active often enough."""
    protocols: tuple[Protocol, ...] = ("detection", "fuzzing", "comsem")
    """How they are tested, see the README."""
    controls: tuple[Control, ...] = ("shuffled", "random", "untrained")
    """Controls; each costs about as much as the basis itself (`shuffled` about half)."""
    text: Literal["held-out", "train"] = "held-out"
    """`held-out`: run the model on sequences nothing was trained on; `train`: read the activations as they were harvested."""
    tokens: int = Field(6000, ge=64)
    """Tokens read (up to this many)."""
    window: int = Field(16, ge=4)
    """Tokens of a passage."""
    shown: int = Field(8, ge=1)
    """Passages that show the feature to the judge, and as many that lack it."""
    tests: int = Field(8, ge=1)
    """Passages of each sort that it is tested on, from other sequences."""
    threshold: float = Field(0.7, gt=0.5, le=1)
    """Area under the curve from which a latent counts as interpretable."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap draws (latents are drawn) for the 95 % intervals."""


class LexicalConfig(ComponentConfig):
    """Options of `lexical`."""

    smoothing: float = Field(0.5, gt=0)
    """Added to the count of every clue."""


class SemanticConfig(ComponentConfig):
    """Options of `semantic`."""

    sharpness: float = Field(10.0, gt=0)
    """Factor on cosines before they are squashed to scores."""


class LocalConfig(ComponentConfig):
    """Options of `local`."""

    model: Annotated[Selection, Use("model")] | None = None
    """The judging model; null: the model whose features are judged."""
    max_new: int = Field(24, ge=1)
    """Tokens of an explanation at most."""
    batch: int = Field(8, ge=1)
    """Questions in one forward."""


class OpenAIConfig(ComponentConfig):
    """Options of `openai`."""

    model: str
    """Name of the model at the server."""
    url: str
    """Address of the interface, up to and including `/v1`; `/chat/completions` is added."""
    key: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; if it is not set, no key is sent."""
    max_calls: int = Field(2000, ge=1)
    """Calls at most; one more is an error."""
    parallel: int = Field(4, ge=1)
    """Calls at the same time."""
    retries: int = Field(4, ge=0)
    """Further tries of a call that failed for a reason that may pass."""
    timeout: float = Field(60.0, gt=0)
    """Seconds a call may take."""
    cache: str | None = None
    """Folder where answers are kept under the hash of their question; null: in memory alone."""
