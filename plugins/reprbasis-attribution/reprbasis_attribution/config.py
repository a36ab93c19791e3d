"""Options of the scorers and of the step."""

from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Selection, Sites, Use

Rule = Literal["midpoint", "left", "right", "trapezoid", "gauss"]


class NodesConfig(ComponentConfig):
    """What a node is and what it is set to; options of every scorer."""

    baseline: Literal["corrupt", "mean", "zero"] = "corrupt"
    """What a node is set to: its value in the paired corrupted prompt, its mean over corrupted prompts, or 0."""
    mean_over: Literal["token", "role", "shared"] = "token"
    """Means are taken for each token position, for each role, or over all tokens (for `baseline: mean`)."""
    index: Literal["shared", "token", "role"] = "shared"
    """One score for all tokens together, one for each token position, or one for each role of the task."""
    protect: int = Field(0, ge=0)
    """Leading tokens left alone (a beginning-of-sequence token always is)."""


class DirectConfig(NodesConfig):
    """Options of `direct`."""

    baseline: Literal["corrupt", "mean", "zero"] = "zero"
    """What a node's direct contribution is compared with."""


class PatchingConfig(NodesConfig):
    """Options of `patching`."""

    rows: int = Field(64, ge=1)
    """Prompts times nodes in one forward, about."""
    most: int | None = Field(None, ge=1)
    """Patch only this many nodes of each site, those of largest first-order score; the others get 0. Null: every node."""


class PathConfig(NodesConfig):
    """Options of `ig`."""

    steps: int = Field(10, ge=1)
    """Points N on the path from the clean value to the baseline."""
    rule: Rule = "midpoint"
    """Where the points lie. The error falls with 1/N for left and right, 1/N^2 for midpoint and trapezoid, faster for gauss."""
    rows: int = Field(64, ge=1)
    """Prompts times points in one forward, about."""


class IterativeConfig(PathConfig):
    """Options of `iterative-ig`."""

    nodes: int = Field(100, ge=1)
    """Nodes left at the end."""
    rounds: int = Field(8, ge=1)
    """Rounds of scoring and dropping; the number of nodes falls geometrically."""
    path: Literal["site", "joint"] = "site"
    """One path for each site, or one on which the nodes of all sites move together (as many times cheaper as there are sites)."""
    order: Literal["absolute", "positive"] = "absolute"
    """Keep the nodes of largest |score|, or of largest score."""


class RandomConfig(NodesConfig):
    """Options of `random`."""

    seed: int = 0
    """Of the scores."""


class PromptsConfig(ComponentConfig):
    """Which prompts a step works on, and what is measured."""

    task: Annotated[Selection, Use("task")]
    """What the model does."""
    metric: Annotated[Selection, Use("metric")] = Field(default="logit-diff", validate_default=True)
    """What is measured of the model."""
    split: Literal["train", "validation", "test"] = "train"
    """Which prompts of the task."""
    prompts: int = Field(96, ge=1)
    """How many."""
    batch: int = Field(16, ge=1)
    """Prompts in a batch."""
    keep: Literal["all", "choice", "top1"] = "all"
    """Which pairs: all, those the model answers rightly among the two, or those where the answer is its first choice."""


class AttributeConfig(PromptsConfig):
    """Options of the step `attribute`."""

    scorer: Annotated[Selection, Use("scorer")]
    """How nodes are scored."""
    sites: Sites = "*"
    """Which sites of the basis; `resid.4::5` is every fifth layer from 4."""


class ConnectConfig(PromptsConfig):
    """Options of the step `connect`."""

    edges: Literal["effect", "activation", "integrated"] = "integrated"
    """First-order effect on the metric through both nodes; activation times Jacobian; or the Jacobian averaged along the path to
    the baseline, whose sums are checked against what the target really loses."""
    steps: int = Field(10, ge=1)
    """Midpoints of that path."""
    rows: int = Field(64, ge=1)
    """Prompts times points in one forward, about."""
