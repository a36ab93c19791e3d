"""Declares the learner `relu`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import ReLUConfig


@hookimpl
def reprbasis_register(register):
    """Offer the learner."""
    register(Component(kind="learner", name="relu", config=ReLUConfig, factory="reprbasis_relu.learner:ReLULearner",
                       summary="Sparse dictionary: ReLU codes with an L1 penalty",
                       provides={"affine-decoder", "nonnegative-latents", "sparse-latents", "divisible-rows",
                                 "divisible-latents", "bfloat16-products"}))
