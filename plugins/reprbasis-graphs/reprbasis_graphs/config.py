"""Options of the step and of the reporter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Selection, Use


class DrawConfig(ComponentConfig):
    """Options of `draw`."""

    task: Annotated[Selection, Use("task")]
    """What the circuit does; the one it was found on."""
    metric: Annotated[Selection, Use("metric")] = Field(default="logit-diff", validate_default=True)
    """What is measured of it."""
    split: Literal["train", "validation", "test"] = "test"
    """Which prompts of the task everything in the drawing is measured on."""
    prompts: int = Field(64, ge=4)
    """How many."""
    batch: int = Field(16, ge=1)
    """Prompts in a batch."""
    keep: Literal["all", "choice", "top1"] = "all"
    """Which pairs: all, those the model answers rightly among the two, or those where the answer is its first choice."""
    random: int = Field(5, ge=1)
    """Random circuits of the same size, to compare with."""
    contexts: int = Field(6, ge=0)
    """Contexts shown of each latent."""
    words: int = Field(8, ge=1)
    """Promoted and suppressed tokens shown of each latent."""
    tokens: int = Field(20_000, ge=1)
    """Harvested tokens that contexts are taken from."""


class GraphsConfig(ComponentConfig):
    """Options of `graphs`."""

    formats: tuple[Literal["html", "svg", "json"], ...] = Field(("html", "svg", "json"), min_length=1)
    """What to write of each graph: the page, a drawing for a paper, the JSON that circuit-tracer and Neuronpedia read."""
    scan: str = Field("", pattern=r"^[A-Za-z0-9_.-]*$")
    """Name of the model in the JSON, as Neuronpedia knows it; empty: the checkpoint of the run."""
    source_set: str = ""
    """Source set on Neuronpedia that holds these latents, for the JSON; empty: there is none."""
    edges: int = Field(150, ge=1)
    """Edges drawn in the SVG and on the page: those of largest absolute weight. The JSON has all."""
