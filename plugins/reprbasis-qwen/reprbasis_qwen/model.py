"""The qwen adapter: two architectures that differ in the norms of queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from reprbasis.kits.hf import HFAdapter, architectures
from reprbasis.kits.hf_layout import Layout

from .config import TINY, QwenConfig


def tiny() -> Path:
    """The tiny trained model in this package."""
    return Path(__file__).parent / TINY


class QwenAdapter(HFAdapter[QwenConfig]):
    """Any `Qwen2ForCausalLM` (Qwen2, Qwen2.5, QwQ; biases on q, k and v) or `Qwen3ForCausalLM` (norms on q and k)."""

    family = "qwen"
    architectures = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
    refused = dict.fromkeys(
        ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
        "a mixture of experts, which has no single MLP whose weights could be shown or edited in a layer")
    named: ClassVar[Mapping[str, Callable[[], Path]]] = {TINY: tiny}

    @classmethod
    def layout_for(cls, hf_config: Any) -> Layout:
        """Qwen3 normalises queries and keys."""
        return Layout(q_norm="q_norm", k_norm="k_norm") if "Qwen3ForCausalLM" in architectures(hf_config) else Layout()

    def template_options(self) -> Mapping[str, Any]:
        """`enable_thinking`, if the config decides it."""
        return {} if self.config.thinking is None else {"enable_thinking": self.config.thinking}
