"""Answers of many tokens: a row for each token, and one forward for all rows that are beginnings of others.

A request asks about the token after each of its prompts. An answer of L tokens is L prompts, each the beginning of the next; run
one by one they cost L forwards. In a causal model the longest of them holds what all of them say.

Shapes: B rows, R rows that are no beginnings of others, T tokens, D width of a site, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..interfaces.metric import Targets
from ..interfaces.model import ForwardResult, ModelAdapter
from ..interfaces.scorer import ContrastBatch
from ..interfaces.tokens import TokenBatch, TokenSequence
from ..sites import Site


def spoken(model: ModelAdapter[Any], answers: Sequence[tuple[TokenSequence, int]]) -> ContrastBatch:
    """A row for each token of each answer: what stands before it, and the token as the answer; no wrong answers.

    Args:
        model: gives device and padding.
        answers: prompt with answer, and the index (at least 1) of the answer's first token.
    """
    rows = [replace(whole.cut(at), sequence=i) for i, (whole, first) in enumerate(answers) for at in range(first, len(whole))]
    said = torch.cat([whole.ids[first:] for whole, first in answers])
    batch = TokenBatch.pad(rows, pad_id=model.pad_id).to(model.device)
    return ContrastBatch(batch, None, Targets(said[:, None].to(model.device)))


def holders(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """[R] the rows that are no beginnings of others, and [B] which of these holds each row. Rows of one number are one text.

    Of a packed batch, or one that holds more than tokens (images), every row is its own.
    """
    every = torch.arange(len(batch.ids), device=batch.ids.device)
    if batch.packed or batch.extra:
        return every, every
    rows = [tuple(ids[mask].tolist()) for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    holder: dict[tuple[int, ...], int] = {}
    chosen: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if rows[i] not in holder:
            holder |= {rows[i][:n]: len(chosen) for n in range(1, len(rows[i]) + 1)}
            chosen.append(i)
    if len(chosen) == len(rows):
        return every, every
    return torch.tensor(chosen, device=every.device), torch.tensor([holder[ids] for ids in rows], device=every.device)


def longest(batch: TokenBatch) -> tuple[TokenBatch, Tensor]:
    """The rows that are no beginnings of others as a batch (the same one, where there are no others), and as `holders`."""
    chosen, row = holders(batch)
    return (batch if len(chosen) == len(batch.ids) else batch.take(chosen)), row


def last_logits(model: ModelAdapter[Any], batch: TokenBatch, *, grad: bool = False) -> Tensor:
    """[B, V] logits after each row, float32 or more. Costs a forward of `longest` alone."""
    whole, row = longest(batch)
    if whole is batch:
        logits = model.forward(batch, grad=grad, logits="last").logits
        assert logits is not None
        found = logits[:, 0]
    else:
        logits = model.forward(whole, grad=grad).logits
        assert logits is not None
        found = logits[row, batch.last()]
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


def captured(model: ModelAdapter[Any], batch: TokenBatch, capture: Collection[Site]) -> ForwardResult:
    """Sites [B, T, D] as if every row had been run. Costs a forward of `longest` alone; beyond a row's own tokens stands what the
    longer row has there.
    """
    whole, row = longest(batch)
    found = model.forward(whole, capture=list(capture), logits="none")
    if whole is batch:
        return found
    return ForwardResult({site: x[row] for site, x in found.sites.items()}, None, batch, found.masks)
