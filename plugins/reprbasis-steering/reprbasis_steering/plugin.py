"""Declares the evaluator; imports no torch."""

from reprbasis import Component, hookimpl

from .config import SteeringConfig


@hookimpl
def reprbasis_register(register):
    """Offer steering."""
    register(Component(
        kind="evaluator", name="steering", config=SteeringConfig, factory="reprbasis_steering.evaluator:Steering",
        requires={"learner": {"affine-decoder"}, "model": {"generate"}},
        summary="Steer with the latents of special tokens: what it does to answers at every strength, and how far one can go"))
