"""Declares the model `gpt2`; imports no torch."""

from reprbasis import Component, hookimpl

from .config import Gpt2Config


@hookimpl
def reprbasis_register(register):
    """Offer the model."""
    register(Component(
        kind="model", name="gpt2", config=Gpt2Config, factory="reprbasis_gpt2.model:Gpt2Adapter",
        summary="GPT-2: LayerNorm, learned positions, one projection for queries, keys and values",
        provides={"gradients", "generate", "chat", "weights"}))
