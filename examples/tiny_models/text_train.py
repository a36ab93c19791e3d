"""Train a tiny text model on the families of `text_data.py`, measure it, and write the checkpoint.

    python examples/tiny_models/text_train.py OUT [--architecture qwen3] [--seed 0]

The architecture is that of Qwen3 or of Llama; data, tokenizer and sizes are the same.

About six minutes of one quiet core. The schedule counts steps, never seconds: the same seed on the same machine and number of
threads gives the same bytes (sums of floats may differ elsewhere; the data hash must not).

Shapes: B documents, T tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from text_data import FAMILIES, Document, documents
from text_measure import measure
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

import reprbasis as rb
from reprbasis.testing.models import THINKING_CHATML


@dataclass(frozen=True)
class Stage:
    """A part of the training, with a cosine of its own.

    Args:
        steps: of the optimisers.
        other: weight of the loss on tokens that nothing before determines; those that are known have 1.
        mixture: documents of each family in a step.
    """

    steps: int
    other: float
    mixture: Mapping[str, int]


STAGES = (Stage(700, 0.1, {"ioi": 16, "sva": 8, "dict": 10, "induction": 12, "lookup": 14}),
          Stage(300, 0.03, {"ioi": 24, "sva": 8, "dict": 6, "induction": 6, "lookup": 14}))
"""The second stage is there for `ioi`: its many names that nothing determines drown the one that is determined."""


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of every stage, to try the recipe")
    parser.add_argument("--n", type=int, default=400, help="documents of each family that it is measured on")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    network = make_network(args.architecture, tokenizer)
    size = sum(p.numel() for p in network.parameters())
    print(f"{size:,} parameters, {len(tokenizer)} tokens")
    stages = []
    for index, stage in enumerate(replace(s, steps=max(1, round(args.share * s.steps))) for s in STAGES):
        found = train(network, tokenizer, stage, seed=args.seed + 1000 * index)
        network.to(torch.bfloat16).save_pretrained(args.out)
        network.float()
        stages.append({**asdict(stage), **found})
    tokenizer.save_pretrained(args.out)
    adapter = ARCHITECTURES[args.architecture].adapter
    note(args.out, adapter, args.n, {"architecture": args.architecture, "seed": args.seed, "parameters": size, "stages": stages})


def note(out: Path, adapter: str, n: int, facts: dict[str, Any]) -> None:
    """Measure the checkpoint and write down how it was made and what it can do."""
    facts = {"recipe": "examples/tiny_models/text_train.py", **facts,
             "held_out": measure(rb.create("model", adapter, checkpoint=str(out)), n=n)}
    text = json.dumps(facts, indent=1)
    (out / "recipe.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the families is one token; any other text falls back to bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=4096, min_frequency=2, special_tokens=control, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator((d.text for f in FAMILIES for d in islice(documents(f, "train", -1), 3000)), trainer)
    core.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=control[2], pad_token=control[0],
                                   chat_template=THINKING_CHATML)


@dataclass(frozen=True)
class Architecture:
    """Config and network of Transformers, and the name of the model adapter."""

    config: type[PreTrainedConfig]
    network: type[PreTrainedModel]
    adapter: str


ARCHITECTURES = {"qwen3": Architecture(Qwen3Config, Qwen3ForCausalLM, "qwen"),
                 "llama": Architecture(LlamaConfig, LlamaForCausalLM, "llama")}


def make_network(architecture: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Untrained, but for `look_back`. Heads are wider than width / heads, as in Qwen3."""
    chosen = ARCHITECTURES[architecture]
    network = chosen.network(chosen.config(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4}, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    look_back(network)
    return network


@torch.no_grad()
def look_back(network: PreTrainedModel) -> None:
    """Let heads 0 and 1 of layer 0 begin as heads that attend one and two tokens back.

    One dimension of every embedding is the same constant; queries and keys read nothing else, and a query is the key turned
    by the rotary angle of the offset. What is looked up by its neighbour is then learned within minutes.
    """
    attention, width = network.model.layers[0].self_attn, network.config.head_dim
    network.model.embed_tokens.weight[:, 0] = 0.1
    key = torch.zeros(1, 1, width)
    key[..., :4] = 1.0  # the quickest rotary frequencies tell neighbours apart best
    norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None)) is not None]
    for norm in norms:
        norm.weight.fill_(2.0)
    gain = 1.0 if norms else 1.7  # without norms of queries and keys: logits of the same size
    attention.k_proj.weight[:width] = 0
    attention.k_proj.weight[:width, 0] = gain * key[0, 0]
    for head, offset in ((0, 1), (1, 2)):
        cos, sin = network.model.rotary_emb(key, torch.tensor([[-offset]]))
        turned, _ = apply_rotary_pos_emb(key[None], key[None], cos, sin)
        rows = slice(head * width, (head + 1) * width)
        attention.q_proj.weight[rows] = 0
        attention.q_proj.weight[rows, 0] = gain * turned[0, 0, 0]


def train(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage, *, seed: int) -> dict[str, Any]:
    """One stage: Muon for the matrices of the blocks, AdamW for the rest. Returns what was read and how long it took."""
    blocks = [p for p in network.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in blocks}
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(blocks, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW([p for p in network.parameters() if id(p) not in inside], lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]
    peaks = [o.param_groups[0]["lr"] for o in optimisers]
    streams = {family: documents(family, "train", seed) for family in stage.mixture}
    digest, tokens, begun = hashlib.sha256(), 0, time.perf_counter()
    network.train()
    for step in range(stage.steps):
        rate = min((step + 1) / 100, 0.05 + 0.95 * (1 + math.cos(math.pi * step / stage.steps)) / 2)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * rate
            optimiser.zero_grad(set_to_none=True)
        losses = {}
        for family, count in stage.mixture.items():
            chosen = list(islice(streams[family], count))
            digest.update("".join(d.text for d in chosen).encode())
            ids, weight = encode(tokenizer, chosen, stage.other)
            logits = network(ids[:, :-1]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            weight = weight[:, 1:].flatten()
            ((loss * weight).sum() / weight.sum() / len(stage.mixture)).backward()
            losses[family] = float(loss.detach()[weight == 1].mean())
            tokens += int((weight > 0).sum())
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 50 == 0 or step == stage.steps - 1:
            told = "  ".join(f"{family} {value:.3f}" for family, value in losses.items())
            print(f"{step:5d} {time.perf_counter() - begun:5.0f} s  {told}", flush=True)
    network.eval()
    return {"tokens": tokens, "data_sha256": digest.hexdigest(), "seconds": round(time.perf_counter() - begun),
            "threads": torch.get_num_threads()}


def encode(tokenizer: PreTrainedTokenizerFast, chosen: list[Document], other: float) -> tuple[Tensor, Tensor]:
    """Token ids and loss weights, [B, T] each, padded on the right."""
    encoded = [tokenizer(d.text, return_offsets_mapping=True) for d in chosen]
    length = max(len(e["input_ids"]) for e in encoded)
    ids, weight = torch.full((len(chosen), length), tokenizer.pad_token_id), torch.zeros(len(chosen), length)
    for row, (document, e) in enumerate(zip(chosen, encoded, strict=True)):
        known, at = set(), 0
        for piece, yes in document.pieces:
            known |= set(range(at, at + len(piece))) if yes else set()
            at += len(piece)
        ids[row, :len(e["input_ids"])] = torch.tensor(e["input_ids"])
        spans = e["offset_mapping"]
        weight[row, :len(spans)] = torch.tensor([1.0 if end - 1 in known else other for _, end in spans])
    return ids, weight


if __name__ == "__main__":
    main()
