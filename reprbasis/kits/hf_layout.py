"""Where a model family keeps its parts: one table per family instead of one subclass of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Module paths of a pre-norm decoder. The defaults are the ones most families share; override what differs.

    Args:
        embed, blocks, norm, head: from the causal-LM module: token embedding, list of blocks, final norm, unembedding.
        positions: embedding of absolute positions that is added to that of the tokens, or None.
        rotary: module giving (cos, sin) for (x, positions), or None.
        attn, mlp, attn_norm, mlp_norm: from a block: the two modules and their input norms.
        attn_write, mlp_write: from a block: the modules whose output is added to the stream (a post-norm, if any).
        q, k, v, o, q_norm, k_norm: from the attention module; norms None where there are none.
        qkv: from the attention module: one projection to all of q, then all of k, then all of v; it replaces those three.
        gate, up, down, act: from the MLP module; gate None for ungated MLPs.
    """

    embed: str = "model.embed_tokens"
    positions: str | None = None
    blocks: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    rotary: str | None = "model.rotary_emb"
    attn: str = "self_attn"
    mlp: str = "mlp"
    attn_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attn_write: str = "self_attn"
    mlp_write: str = "mlp"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    qkv: str | None = None
    o: str = "o_proj"
    q_norm: str | None = None
    k_norm: str | None = None
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    act: str = "act_fn"


def part(module: nn.Module, path: str) -> Any:
    """The submodule (or attribute) at a dotted path."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found


def linear(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight as a [out, in] view, and bias, of a `Linear` or of a `Conv1D`, which stores its weight transposed."""
    weight: Tensor = part(module, "weight")
    bias: Tensor | None = getattr(module, "bias", None)
    return (weight if isinstance(module, nn.Linear) else weight.T), bias
