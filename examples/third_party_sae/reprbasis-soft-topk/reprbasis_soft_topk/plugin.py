"""Declares the learner `soft-topk`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import SoftTopkConfig


@hookimpl
def reprbasis_register(register):
    """Offer the learner. What it provides is proven by the conformance suite."""
    register(Component(
        kind="learner", name="soft-topk", config=SoftTopkConfig, factory="reprbasis_soft_topk.learner:SoftTopkLearner",
        summary="TopK codes, each shortened by the first code that is left out",
        provides={"affine-decoder", "nonnegative-latents"}))
