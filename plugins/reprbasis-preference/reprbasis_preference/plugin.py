"""Declares the evaluator and the steps; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import FeatureMapConfig, InteractConfig, PreferConfig


@hookimpl
def reprbasis_register(register):
    """Offer the map of all heads and MLPs over all features, and the ranking of components on a task."""
    register(Component(
        kind="evaluator", name="preference", config=FeatureMapConfig, factory="reprbasis_preference.evaluator:FeatureMap",
        summary="Which features every head and MLP writes, given each feature alone, against shuffled targets",
        requires={"model": {"weights"}, "learner": {"affine-decoder"}}))
    register(Component(
        kind="step", name="prefer", config=PreferConfig, factory="reprbasis_preference.step:PreferStep",
        summary="Rank heads and MLPs by how much they write the task's answer over the wrong one, in context",
        output="findings", needs_model=True, requires={"model": {"weights"}}))
    register(Component(
        kind="step", name="interact", config=InteractConfig, factory="reprbasis_preference.interact:InteractStep",
        summary="A graph of which features feed which, through which head or MLP",
        inputs=(Port("basis", "basis", requires=frozenset({"affine-decoder"})), Port("activations", "activations")),
        output="graph", needs_model=True, requires={"model": {"weights"}}))
