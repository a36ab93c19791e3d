"""Declares the learner `gated`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import GatedConfig


@hookimpl
def reprbasis_register(register):
    """Offer the learner."""
    register(Component(kind="learner", name="gated", config=GatedConfig, factory="reprbasis_gated.learner:GatedLearner",
                       summary="Sparse dictionary whose gates carry the L1 penalty, so that magnitudes do not shrink",
                       provides={"affine-decoder", "nonnegative-latents", "sparse-latents", "divisible-rows",
                                 "divisible-latents", "bfloat16-products"}))
