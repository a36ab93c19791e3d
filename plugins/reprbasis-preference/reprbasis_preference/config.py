"""Options of the evaluator and of the steps."""

from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Selection, Use


class FeatureMapConfig(ComponentConfig):
    """Options of the evaluator `preference`."""

    features: int | None = Field(1024, ge=2)
    """Latents used as sources and targets, drawn at random; null: all of them. Cost grows with its square."""
    layers: tuple[int, ...] | None = None
    """Which layers; null: all."""
    mlp: Literal["mlp_bg", "mlp", "none"] = "mlp_bg"
    """MLPs with the feature added to the mean stream, with the bare feature, or left out."""
    contrast: bool = True
    """Targets are directions minus the mean direction; otherwise the directions themselves."""
    top: int = Field(8, ge=1)
    """Preferred targets kept for each component and source."""
    null: int = Field(256, ge=200)
    """Shuffled targets that each preference is compared with."""
    chunk: int = Field(1024, ge=1)
    """Targets handled at a time: memory is heads times sources times this."""


class PreferConfig(ComponentConfig):
    """Options of the step `prefer`."""

    task: Annotated[Selection, Use("task")]
    """What the model does; the target is what its answer adds to the logits over the wrong answer."""
    split: Literal["train", "validation", "test"] = "train"
    """Which prompts of the task."""
    prompts: int = Field(48, ge=2)
    """How many."""
    batch: int = Field(16, ge=1)
    """Prompts in a batch."""
    keep: Literal["all", "choice", "top1"] = "all"
    """Which pairs: all, those the model answers rightly among the two, or those where the answer is its first choice."""
    null: int = Field(256, ge=200)
    """Random targets that each component is compared with."""
    shown: int = Field(12, ge=1)
    """Components written out as measurements; the tensors hold all."""


class InteractConfig(ComponentConfig):
    """Options of the step `interact`."""

    layers: tuple[int, ...] | None = None
    """Which blocks; null: all."""
    features: int | None = Field(1024, ge=2)
    """Latents used as sources and targets, those active most often; null: all. Cost grows with its square."""
    most_active: float = Field(0.2, gt=0, le=1)
    """Latents active on more than this share of the tokens, at every block, are left out: they say little of any one."""
    mlp: bool = True
    """Whether MLPs are looked at too: the feature joins their mean input."""
    top: int = Field(4, ge=1)
    """Targets kept for each component and source, of which the strongest are drawn."""
    edges: int = Field(150, ge=1)
    """Edges drawn about at most, as many of each block."""
    check: int = Field(4, ge=0)
    """The edges drawn are checked in real text: at so many tokens each, where the source is strongest, it is taken out of what
    the component reads. 0: they are not."""
    null: int = Field(256, ge=200)
    """Shuffled targets that each edge is compared with."""
    chunk: int = Field(1024, ge=1)
    """Targets handled at a time: memory is heads times sources times this."""
    contexts: int = Field(4, ge=0)
    """Contexts on the card of a latent."""
    tokens: int = Field(20_000, ge=1)
    """Training tokens read for them."""
