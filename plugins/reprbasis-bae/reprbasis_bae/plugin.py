"""Declares the learner `bae`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import BAEConfig


@hookimpl
def reprbasis_register(register):
    """Offer the learner."""
    register(Component(kind="learner", name="bae", config=BAEConfig, factory="reprbasis_bae.learner:BAELearner",
                       summary="Dictionary of bits with a price on their entropy and covariance",
                       provides={"affine-decoder", "nonnegative-latents", "binary-latents", "sparse-latents"}))
