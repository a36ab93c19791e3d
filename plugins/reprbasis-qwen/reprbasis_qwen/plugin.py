"""Declaration of the qwen adapter."""

from reprbasis import Component, hookimpl

from .config import QwenConfig


@hookimpl
def reprbasis_register(register):
    """Offer the model `qwen`."""
    register(Component(
        kind="model", name="qwen", config=QwenConfig, factory="reprbasis_qwen.model:QwenAdapter",
        summary="Qwen2, Qwen2.5 and Qwen3 text models from a directory, a GGUF file or the hub, and a tiny trained one",
        provides={"gradients", "generate", "chat", "weights"}))
