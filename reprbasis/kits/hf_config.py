"""Options that every Hugging Face model adapter has. Imports no torch: plugins use it in their `config.py`."""

from __future__ import annotations

from typing import Literal

from ..component import ComponentConfig


class HFConfig(ComponentConfig):
    """Which checkpoint, and how to run it."""

    checkpoint: str
    """A local directory (config.json, safetensors, tokenizer), a GGUF file, or a Hugging Face hub id."""

    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint; only for hub ids."""

    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Number format of weights and activations, whatever the checkpoint is stored in: bfloat16 halves the memory of float32. Most
    norms run in float32 even so: float64 is good to about 1e-6."""

    device: str = "cpu"
    """Where the weights go, for example cpu or cuda (under torchrun each process's own GPU). Never chosen for you."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention kernel: PyTorch's fused one, or plain matrix products."""
