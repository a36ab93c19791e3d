"""Declares the finders; imports no torch."""

from reprbasis import Component, hookimpl

from .config import GreedyConfig, MaskConfig, ThresholdConfig

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
