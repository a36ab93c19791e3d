"""A network and its rotated copy compute the same: the one pair of models whose alignment is known exactly.

With the gains of its norms folded into what reads them, a pre-norm decoder with RMSNorm does not change when its residual stream
is rotated, x -> x R, together with every matrix that reads or writes it. For decoders of `layers` with `input_layernorm`,
`self_attn.{q,k,v,o}_proj`, `post_attention_layernorm`, `mlp.{gate,up,down}_proj`.

Shapes: D residual width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


def gauge_copy(source: Path, folder: Path, rotation: Tensor, *, fold: bool = True, dtype: torch.dtype | None = None) -> Path:
    """Write a rotated copy of a checkpoint; its embeddings are untied, because the gain of the last norm goes into one of them.

    Args:
        source: directory of the checkpoint.
        folder: where the copy goes.
        rotation: [D, D] orthogonal.
        fold: fold the gains first; without, the copy is another model (for tests: it must not align).
        dtype: of the copy's weights; None: float32.

    Returns:
        The folder.
    """
    network = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64, local_files_only=True)
    if network.config.tie_word_embeddings:
        network.config.tie_word_embeddings = False
        network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    rotate(network, rotation, fold=fold)
    network.to(dtype or torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    return folder


@torch.no_grad()
def rotate(network: Any, rotation: Tensor, *, fold: bool = True) -> None:
    """Rotate the residual stream of a network (its embeddings untied) in place: x -> x @ rotation."""
    body = network.get_decoder()
    readers = [(body.norm, [network.get_output_embeddings()])]
    writers = []
    for layer in body.layers:
        at, mlp = layer.self_attn, layer.mlp
        readers += [(layer.input_layernorm, [at.q_proj, at.k_proj, at.v_proj]),
                    (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])]
        writers += [at.o_proj, mlp.down_proj]
    for norm, linears in readers:
        for linear in linears:
            r = rotation.to(linear.weight)
            linear.weight.copy_((linear.weight * norm.weight if fold else linear.weight) @ r)
        if fold:
            norm.weight.fill_(1.0)
    for linear in writers:
        r = rotation.to(linear.weight)
        linear.weight.copy_(r.T @ linear.weight)
        if linear.bias is not None:
            linear.bias.copy_(linear.bias @ r)
    embed = network.get_input_embeddings().weight
    embed.copy_(embed @ rotation.to(embed))
