"""Batched generation with a key/value cache: greedy or sampled, with edits, for any Hugging Face decoder.

Prompts are padded on the left. A sequence that has ended leaves the batch, cache and all; each sequence samples from
its own generator. What a sequence gets does not depend on its batch-mates, up to the float noise of other shapes.

Shapes: B sequences still running, T prompt length, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..interfaces.model import Sampling
from ..interfaces.tokens import TokenBatch, TokenSequence
from .hf_run import Past

Step = Callable[[TokenBatch, Past], Tensor]
"""Runs the model on new tokens after a past: [B, T] -> logits of the last position [B, V]."""


def generate(step: Step, cache: Any, prompts: Sequence[TokenSequence], sampling: Sampling, *, stop: Collection[int],
             max_tokens: int, pad_id: int, device: torch.device,
             thinking: tuple[int, int] | None = None) -> list[TokenSequence]:
    """Continue each prompt; see `ModelAdapter.generate`.

    Args:
        step: one forward.
        cache: an empty cache for it.
        prompts: what to continue.
        sampling: how.
        stop: token ids that end a turn; the one that ends a continuation is kept in it.
        max_tokens: no sequence grows beyond this.
        pad_id: put on padding.
        device: of the model.
        thinking: token ids that begin and end thinking; what is generated between them is flagged.
    """
    choosers = [_Chooser(sampling, p.sequence) for p in prompts]
    new: list[list[int]] = [[] for _ in prompts]
    running = [i for i, p in enumerate(prompts) if _room(p, new[i], sampling, max_tokens)]
    if not running:
        return list(prompts)
    batch = TokenBatch.pad([prompts[i] for i in running], side="left", pad_id=pad_id).to(device)
    past = Past(cache, batch.positions[:, :0], batch.segments[:, :0])
    while running:
        past.extend(batch)
        logits = step(batch, past).float().cpu()
        chosen = [choosers[i](row) for i, row in zip(running, logits, strict=True)]
        for i, token in zip(running, chosen, strict=True):
            new[i].append(token)
        going = [k for k, i in enumerate(running)
                 if new[i][-1] not in stop and _room(prompts[i], new[i], sampling, max_tokens)]
        if going and len(going) < len(running):
            past.keep(torch.tensor(going, device=device))
        running = [running[k] for k in going]
        if running:
            batch = _next(prompts, new, running, device, thinking)
    return [_joined(p, tokens, stop, thinking) for p, tokens in zip(prompts, new, strict=True)]


def _room(prompt: TokenSequence, new: Sequence[int], sampling: Sampling, max_tokens: int) -> bool:
    return len(new) < sampling.max_new and len(prompt) + len(new) < max_tokens


def _thought(prompt: TokenSequence, new: Sequence[int], thinking: tuple[int, int]) -> list[bool]:
    """Which of the new tokens lie between the two; a prompt may end with thinking begun by the template."""
    special = prompt.flags.get("special")
    before = [] if special is None else [i for i in prompt.ids[special].tolist() if i in thinking]
    inside, out = before[-1:] == [thinking[0]], []
    for token in new:
        out.append(inside and token not in thinking)
        inside = token == thinking[0] or (inside and token != thinking[1])
    return out


def _next(prompts: Sequence[TokenSequence], new: Sequence[Sequence[int]], running: Sequence[int],
          device: torch.device, thinking: tuple[int, int] | None) -> TokenBatch:
    """The batch that holds the newest token of each running sequence."""
    ids = torch.tensor([[new[i][-1]] for i in running], device=device)
    positions = torch.tensor([[len(prompts[i]) + len(new[i]) - 1] for i in running], device=device)
    owners = torch.tensor([[prompts[i].sequence] for i in running], device=device)
    yes, no = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    flags = {"generated": yes, "assistant": yes, "special": no}
    if thinking is not None:
        flags["thinking"] = torch.tensor([_thought(prompts[i], new[i], thinking)[-1:] for i in running], device=device)
    return TokenBatch(ids, yes, positions, torch.zeros_like(ids), owners, flags)


def _joined(prompt: TokenSequence, new: Sequence[int], stop: Collection[int],
            thinking: tuple[int, int] | None) -> TokenSequence:
    """Prompt and continuation. The token that ended the turn is template, hence special and not assistant content."""
    ends = bool(new) and new[-1] in stop
    fresh = {"generated": [True] * len(new), "assistant": [True] * (len(new) - ends) + [False] * ends,
             "special": [False] * (len(new) - ends) + [True] * ends}
    if thinking is not None:
        fresh["thinking"] = [t and not e for t, e in zip(_thought(prompt, new, thinking), fresh["special"], strict=True)]
    flags = {}
    for name in {*prompt.flags, *fresh}:
        old = prompt.flags.get(name, torch.zeros(len(prompt), dtype=torch.bool))
        flags[name] = torch.cat([old, torch.tensor(fresh.get(name, [False] * len(new)), dtype=torch.bool)])
    offsets = prompt.offsets
    if offsets is not None:
        offsets = torch.cat([offsets, torch.full((len(new), 2), -1, dtype=offsets.dtype)])
    fresh_ids = torch.tensor(new, dtype=prompt.ids.dtype)
    contents = None if prompt.contents is None else torch.cat([prompt.contents, fresh_ids])
    return replace(prompt, ids=torch.cat([prompt.ids, fresh_ids]), flags=flags, offsets=offsets, contents=contents)


class _Chooser:
    """Picks the next token of one sequence from its logits [V]."""

    def __init__(self, sampling: Sampling, sequence: int) -> None:
        self.sampling = sampling
        seed = hashlib.sha256(f"{sampling.seed}:{sequence}".encode()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1)

    def __call__(self, logits: Tensor) -> int:
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p >= 1:  # sorting the vocabulary costs more than a small model's forward
            return int(torch.multinomial(probabilities, 1, generator=self.generator))
        # nucleus: the fewest most likely tokens that hold top_p of the mass, never none
        probabilities, order = probabilities.sort(descending=True, stable=True)
        probabilities = probabilities.masked_fill(probabilities.cumsum(0) - probabilities >= self.sampling.top_p, 0.0)
        return int(order[torch.multinomial(probabilities, 1, generator=self.generator)])
