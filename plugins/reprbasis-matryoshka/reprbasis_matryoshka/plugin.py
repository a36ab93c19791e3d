"""Declares the learner `matryoshka`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import MatryoshkaConfig


@hookimpl
def reprbasis_register(register):
    """Offer the learner."""
    register(Component(kind="learner", name="matryoshka", config=MatryoshkaConfig,
                       factory="reprbasis_matryoshka.learner:MatryoshkaLearner",
                       summary="Sparse dictionary in nested prefixes: general latents first, specific ones behind",
                       provides={"affine-decoder", "nonnegative-latents", "sparse-latents", "divisible-rows",
                                 "bfloat16-products"}))
