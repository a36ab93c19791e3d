"""Declaration of the llama adapter."""

from reprbasis import Component, hookimpl

from .config import LlamaConfig


@hookimpl
def reprbasis_register(register):
    """Offer the model `llama`."""
    register(Component(
        kind="model", name="llama", config=LlamaConfig, factory="reprbasis_llama.model:LlamaAdapter",
        summary="Llama-type models (Llama, SmolLM2, ...) from a directory, a GGUF file or the hub",
        provides={"gradients", "generate", "chat", "weights"}))
