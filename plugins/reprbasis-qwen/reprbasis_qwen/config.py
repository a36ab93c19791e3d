"""Options of the qwen adapter."""

from __future__ import annotations

from typing import Final

from reprbasis.kits.hf_config import HFConfig

TINY: Final = "tiny-qwen3"


class QwenConfig(HFConfig):
    """Which Qwen checkpoint, and how to run it."""

    checkpoint: str = TINY
    """A local directory (config.json, safetensors, tokenizer), a GGUF file, a Hugging Face hub id, or tiny-qwen3, which is
    in this package."""

    thinking: bool | None = None
    """Whether an answer opens with room for thinking: `enable_thinking` of the chat template; null: as the template has it."""
