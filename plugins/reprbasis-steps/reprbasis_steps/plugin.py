"""Declares the steps; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import EvaluateConfig, HarvestConfig, LearnConfig


@hookimpl
def reprbasis_register(register):
    """Offer harvest, learn and evaluate."""
    register(Component(
        kind="step", name="harvest", config=HarvestConfig, factory="reprbasis_steps.steps:HarvestStep",
        summary="Run the model over a corpus and keep the activations of its sites",
        inputs=(Port("text", "activations", optional=True),), output="activations", needs_model=True, provides={"parallel"}))
    register(Component(
        kind="step", name="learn", config=LearnConfig, factory="reprbasis_steps.steps:LearnStep",
        summary="Learn one dictionary over all sites of harvested activations",
        inputs=(Port("activations", "activations"),), output="basis", provides={"parallel"}))
    register(Component(
        kind="step", name="evaluate", config=EvaluateConfig, factory="reprbasis_steps.steps:EvaluateStep",
        summary="Measure a basis, each number beside its controls",
        inputs=(Port("basis", "basis"), Port("activations", "activations"), Port("test", "activations", optional=True)),
        output="findings", needs_model=True))
