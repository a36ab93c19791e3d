"""Declares the evaluator; imports no torch."""

from reprbasis import Component, hookimpl

from .config import ManifoldConfig


@hookimpl
def reprbasis_register(register):
    """Offer the comparison of layers."""
    register(Component(
        kind="evaluator", name="manifold", config=ManifoldConfig, factory="reprbasis_manifold.evaluator:Manifold",
        summary="Do layers share a manifold? Subspaces, latents and features followed over depth, beside their nulls",
        requires={"learner": {"affine-decoder"}}))
