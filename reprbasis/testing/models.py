"""Tiny models with random weights and a real small tokenizer, made on the spot without a network connection.

The kit names no model family: hand it a Transformers config and it writes a checkpoint directory of that architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHATML = ("{% for message in messages %}"
          "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
"""A chat template with control tokens and role names around every message."""

THINKING_CHATML = (
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set said = m['content'] %}{% set thought = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.asked %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}")
"""A chat template in the manner of Qwen3: it shows what was thought before the last answer and leaves out the rest."""

_SENTENCES = (
    "The keys to the cabinet are on the table.", "When Mary and John went to the store, John gave a drink to Mary.",
    "What is the capital of France? The capital of France is Paris.", "user system assistant You are a helpful one.",
    "def double(number):\n    return number + number\n", "Numbers: 0 1 2 3 4 5 6 7 8 9, 10 and 11.",
)


def tiny_config(model_type: str, **changes: Any) -> Any:
    """The Transformers config of a very small network of that type: 3 layers of width 32.

    Args:
        model_type: as in `config.json`, for example `gpt2`.
        changes: fields that shall be otherwise.
    """
    small = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256}
    known = AutoConfig.for_model(model_type)
    return AutoConfig.for_model(model_type, **{**{k: v for k, v in small.items() if hasattr(known, k)}, **changes})


def tiny_tokenizer(folder: Path, *, vocab: int = 320, chat_template: str = CHATML,
                   control: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, written to `folder`. The same every time.

    Args:
        folder: where its files go.
        vocab: tokens at most: 256 bytes, `<|im_start|>`, `<|im_end|>` (which ends a turn and pads), `<think>`, `</think>`
            (which are ordinary tokens, as Qwen3 has them), and merges.
        chat_template: in Jinja.
        control: further control tokens; their ids count from 2.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    control = ["<|im_start|>", "<|im_end|>", *control]
    trainer = trainers.BpeTrainer(vocab_size=vocab - 2, special_tokens=control, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(_SENTENCES, trainer)
    core.add_tokens([AddedToken(marker, special=False) for marker in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=control[0], eos_token=control[1],
                                        pad_token=control[1], chat_template=chat_template)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_checkpoint(folder: Path, hf_config: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32,
                    chat_template: str = CHATML, control: Sequence[str] = (), network: Any = AutoModelForCausalLM) -> Path:
    """A checkpoint directory of the given architecture: random weights, safetensors, and `tiny_tokenizer`.

    Weights are larger than a usual initialisation, and norms and biases are not trivial, so that every part of the
    model moves the logits and a part left out is noticed.

    Args:
        folder: where the files go; made if need be.
        hf_config: a Transformers config; choose a few layers, a width of 32 to 64 and a vocabulary of 320 or more.
        seed: of the weights.
        dtype: of the weights.
        chat_template: of the tokenizer.
        control: further control tokens of the tokenizer; their ids count from 2.
        network: the Transformers auto class that makes the network (`AutoModelForImageTextToText` for vision models).

    Returns:
        The folder.
    """
    tokenizer = tiny_tokenizer(folder, vocab=hf_config.get_text_config().vocab_size, chat_template=chat_template,
                               control=control)
    hf_config.bos_token_id, hf_config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    hf_config.pad_token_id = tokenizer.pad_token_id
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        made = network.from_config(hf_config)
    with torch.no_grad():
        for name, weight in sorted(made.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_(noise * (0.3 if "embed" in name else weight.shape[-1] ** -0.5))
            else:
                weight.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
    made.to(dtype).save_pretrained(folder)
    return folder
