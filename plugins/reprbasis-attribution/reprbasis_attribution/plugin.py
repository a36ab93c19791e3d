"""Declares the scorers and the steps; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import (
    AttributeConfig,
    ConnectConfig,
    DirectConfig,
    IterativeConfig,
    NodesConfig,
    PatchingConfig,
    PathConfig,
    RandomConfig,
)

SCORERS = (
    ("direct", DirectConfig, "direct:DirectScorer", {"gradients", "weights"},
     "What each node writes straight to the logits, through the final norm at its actual scale"),
    ("patching", PatchingConfig, "patching:PatchingScorer", set(),
     "The effect of setting each single node to its baseline, by running the model: the truth the others approximate"),
    ("attribution", NodesConfig, "gradients:GradientScorer", {"gradients"},
     "First-order estimate of patching for all nodes at once: gradient times difference from the baseline"),
    ("ig", PathConfig, "gradients:PathScorer", {"gradients"},
     "Integrated gradients from the clean value to the baseline, with the completeness residual"),
    ("iterative-ig", IterativeConfig, "iterative:IterativeScorer", {"gradients"},
     "Integrated gradients inside a circuit that shrinks round by round"),
    ("magnitude", NodesConfig, "controls:MagnitudeScorer", set(),
     "Control: how far each node is from its baseline, whatever it does"),
    ("random", RandomConfig, "controls:RandomScorer", set(),
     "Control: random scores for the nodes that differ from their baseline"),
)


@hookimpl
def reprbasis_register(register):
    """Offer every scorer, a step that runs any scorer, and one that finds the edges of a circuit."""
    for name, config, factory, needs, summary in SCORERS:
        register(Component(kind="scorer", name=name, config=config, factory=f"reprbasis_attribution.{factory}",
                           summary=summary, requires={"model": needs} if needs else {}))
    register(Component(
        kind="step", name="attribute", config=AttributeConfig, factory="reprbasis_attribution.step:AttributeStep",
        summary="Score the nodes of a basis on a task", inputs=(Port("basis", "basis"),), output="scores", needs_model=True))
    register(Component(
        kind="step", name="connect", config=ConnectConfig, factory="reprbasis_attribution.step:ConnectStep",
        summary="Edges between the nodes of a circuit, with sum checks",
        inputs=(Port("basis", "basis"), Port("circuit", "circuit")), output="scores", needs_model=True,
        requires={"model": {"gradients"}}))
