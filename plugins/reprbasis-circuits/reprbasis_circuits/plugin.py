"""Declares the finders; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import FaithfulnessConfig, FindConfig, FrontierConfig, GreedyConfig, MaskConfig, ThresholdConfig

GRADIENTS = {"model": {"gradients"}, "learner": {"affine-decoder"}}


@hookimpl
def reprbasis_register(register):
    """Offer everything that has to do with circuits."""
    register(Component(
        kind="finder", name="mask", config=MaskConfig, factory="reprbasis_circuits.mask:MaskFinder", requires=GRADIENTS,
        summary="Learn which nodes stay, at a price for each (continuous sparsification); many prices at once"))
    register(Component(
        kind="finder", name="threshold", config=ThresholdConfig, factory="reprbasis_circuits.threshold:ThresholdFinder",
        requires={"learner": {"affine-decoder"}}, summary="The nodes with the largest scores of any scorer"))
    register(Component(
        kind="finder", name="greedy", config=GreedyConfig, factory="reprbasis_circuits.greedy:GreedyFinder", requires=GRADIENTS,
        summary="Add the node that helps most, one at a time"))
    basis = Port("basis", "basis", requires=frozenset({"affine-decoder"}))
    register(Component(
        kind="step", name="find", config=FindConfig, factory="reprbasis_circuits.steps:FindStep",
        summary="Find a small set of nodes that carries a task",
        inputs=(basis, Port("scores", "scores", optional=True)), output="circuit", needs_model=True))
    register(Component(
        kind="step", name="faithfulness", config=FaithfulnessConfig, factory="reprbasis_circuits.steps:FaithfulnessStep",
        summary="Judge a circuit on held-out prompts: faithfulness, completeness, minimality, beside random nodes",
        inputs=(basis, Port("circuit", "circuit")), output="findings", needs_model=True))
    register(Component(
        kind="step", name="frontier", config=FrontierConfig, factory="reprbasis_circuits.steps:FrontierStep",
        summary="Faithfulness against size for several finders, scorers and random nodes",
        inputs=(basis,), output="findings", needs_model=True))
