"""Declares the learner `jumprelu`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import JumpReLUConfig


@hookimpl
def reprbasis_register(register):
    """Offer the learner."""
    register(Component(kind="learner", name="jumprelu", config=JumpReLUConfig,
                       factory="reprbasis_jumprelu.learner:JumpReLULearner",
                       summary="Sparse dictionary with a learned threshold per latent",
                       provides={"affine-decoder", "nonnegative-latents", "sparse-latents", "divisible-rows",
                                 "divisible-latents", "bfloat16-products"}))
