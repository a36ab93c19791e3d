"""Options of the finders, of their evaluation and of the steps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from reprbasis import ComponentConfig, Selection, Sites, Use


class NodesConfig(ComponentConfig):
    """What a node is and what happens to those outside a circuit. Circuits can be compared only if these agree."""

    sites: Sites = "*"
    """Where the basis is spliced in; `resid.2::4` is every fourth layer from 2."""
    ablation: Literal["mean", "corrupt", "zero"] = "mean"
    """What other nodes take: their mean over corrupted prompts, position by position; their value in the paired one; or 0."""
    error: Literal["node", "own", "mean", "none"] = "node"
    """The reconstruction error of a site and token: a node like any other, always kept, always at its mean, or left out."""
    index: Literal["token", "role", "shared"] = "token"
    """One mask for each token position, for each role of the task, or one for all positions together."""
    protect: int | Literal["auto"] = "auto"
    """Leading tokens left alone; `auto`: those that all prompts share (a beginning-of-sequence token, a system prompt)."""


class MaskConfig(NodesConfig):
    """Options of `mask`."""

    cost: float = Field(0.05, gt=0)
    """Price of a node in units of the metric: in a linear model exactly the nodes with a larger effect stay."""
    unit: Literal["metric", "share"] = "metric"
    """Of prices: the metric's own, or the loss without any node, which is all there is to gain: no circuit costs more than 1."""
    costs: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.35, 0.6, 1.0)
    """Prices of a whole frontier, found together."""
    steps: int = Field(200, ge=2)
    """Optimiser steps."""
    inner: int = Field(1, ge=1)
    """Steps for each run of the model; between runs the metric is extrapolated to first order in the mask."""
    rows: int = Field(32, ge=1)
    """Most prompts times costs in one forward, which decides its time: many costs share it, with fewer prompts each."""
    lr: float | None = Field(None, gt=0)
    """Adam's learning rate; by default 3 / steps: a node of no use is dropped after a third of the steps."""
    beta: float = Field(200.0, gt=1)
    """Temperature at the last step; it grows from 1 geometrically."""
    noise: float = Field(0.01, ge=0)
    """Spread of the initial mask logits around 1; without it two redundant nodes can never be told apart."""
    loss: Literal["abs", "abs-batch", "square", "ce", "kl"] = "abs"
    """Distance of the metric from its target: mean absolute, absolute mean, mean square; cross-entropy of the answer; or KL."""
    target: Literal["model", "basis"] = "model"
    """What to reproduce: the unchanged model, or the model with every latent on under the same error policy."""
    candidates: Literal["active", "all"] = "active"
    """Nodes to choose from: latents that are active at that position in some prompt, or all."""
    repair: int = Field(12, ge=0)
    """Afterwards at most so many rounds of local search on hard masks: add, drop, swap nodes while loss + price x nodes falls."""
    tries: int = Field(6, ge=1)
    """Nodes to add, and nodes to drop, that a round of the repair tries alone; it costs some 6 x tries forwards of 8 prompts."""
    cleanup: float | None = Field(None, gt=0)
    """Afterwards drop nodes whose removal changes the mean metric by less than this share of F(model) - F(empty)."""
    patience: int = Field(20, ge=1)
    """Stop when no node has changed sides for this many steps and the temperature is above 50."""
    seed: int = 0
    """Of the initial noise and of the order of the prompts."""
    parity: Literal["ssc"] | None = None
    """`ssc`: the published schedule and units: price divided by sites, temperature to 200^1.2, no noise, no early stop."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.costs or any(c <= 0 for c in self.costs):
            raise ValueError("costs must be positive and at least one")
        if self.inner > 1 and self.loss in ("ce", "kl"):
            raise ValueError("inner above 1 needs a loss of the metric: abs, abs-batch or square")
        return self


class ThresholdConfig(NodesConfig):
    """Options of `threshold`."""

    nodes: int = Field(20, ge=1)
    """Nodes kept: over all sites, or at each."""
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """Sizes of a whole frontier."""
    per_site: bool = False
    """Whether `nodes` are kept at each site instead of over all."""
    order: Literal["absolute", "positive"] = "absolute"
    """Keep the nodes of largest |score|, or of largest score."""


class GreedyConfig(NodesConfig):
    """Options of `greedy`."""

    nodes: int = Field(16, ge=1)
    """Nodes that are left."""
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    """Sizes of a whole frontier."""
    drop: float = Field(0.25, gt=0, lt=1)
    """Share of the nodes dropped in a round: those of smallest derivative. Cost of a round: one forward and backward."""
    exact: int = Field(16, ge=0)
    """From this size on one node is dropped at a time, and each is tried. Cost: exact^2 / 2 forwards."""
    prompts: int = Field(64, ge=1)
    """Prompts used (the first ones)."""


class PromptsConfig(ComponentConfig):
    """Which prompts a step works on."""

    task: Annotated[Selection, Use("task")]
    """What the model does."""
    metric: Annotated[Selection, Use("metric")] = Field(default="logit-diff", validate_default=True)
    """What is measured of it."""
    prompts: int = Field(96, ge=2)
    """Prompts to find circuits on (split `train`)."""
    batch: int = Field(16, ge=1)
    """Prompts in a batch."""
    keep: Literal["all", "choice", "top1"] = "all"
    """Which pairs: all, those the model answers rightly among the two, or those where the answer is its first choice."""


class FindConfig(PromptsConfig):
    """Options of `find`."""

    finder: Annotated[Selection, Use("finder")]
    """How the circuit is found."""


class HeldOutConfig(PromptsConfig):
    """Prompts that circuits are judged on, besides those they are found on."""

    held_out: int = Field(64, ge=2)
    """Prompts to judge circuits on (split `test`)."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap draws for the 95 % intervals; prompts with the same tokens are drawn together."""


class FaithfulnessConfig(HeldOutConfig):
    """Options of `faithfulness`."""

    subsets: int = Field(6, ge=0)
    """Random subsets for the second form of completeness."""
    random: int = Field(5, ge=1)
    """Random circuits of the same size, for comparison."""
    edges: tuple[int, ...] = ()
    """Numbers of edges: how faithful the circuit is with only its strongest ones, and with all; empty: not measured."""


class FrontierConfig(HeldOutConfig, NodesConfig):
    """Options of `frontier`. The options of nodes hold for every finder and scorer."""

    finders: tuple[Annotated[Selection, Use("finder")], ...] = Field(min_length=1)
    """Finders of circuits of several sizes; the first one is compared with all others."""
    scorers: tuple[Annotated[Selection, Use("scorer")], ...] = ()
    """Scorers whose top nodes are taken, at the sizes that the first finder found."""
    random: int = Field(5, ge=1)
    """Draws of random nodes at each size."""
    seeds: int = Field(1, ge=1)
    """Repetitions of everything with other training prompts and other seeds, judged on the same held-out prompts."""
    repeats: int = Field(0, ge=0)
    """Further searches of the first finder in another order of the same prompts and with other noise, for stability."""
    halves: bool = False
    """Whether the first finder also searches on each half of the prompts, for stability."""
