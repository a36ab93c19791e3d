"""Per-token comparisons of logits, for metrics and evaluators.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..interfaces.tokens import PAD_SEGMENT, TokenBatch


def predicts(batch: TokenBatch) -> Tensor:
    """[B, T] bool: positions whose next token belongs to the same sequence, so that predicting it is fair."""
    inside = torch.zeros_like(batch.mask)
    inside[:, :-1] = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] != PAD_SEGMENT)
    return inside


def cross_entropy(logits: Tensor, batch: TokenBatch) -> Tensor:
    """[B, T, V] -> [P] nats for the next token at each of the P positions of `predicts(batch)`, in row order."""
    where = predicts(batch)
    targets = batch.ids.roll(-1, dims=1)[where]
    return torch.nn.functional.cross_entropy(logits[where].float(), targets, reduction="none")


def kl_divergence(reference: Tensor, logits: Tensor, batch: TokenBatch) -> Tensor:
    """KL(reference || logits) in nats, [P], at the positions of `predicts(batch)`."""
    where = predicts(batch)
    log_p, log_q = reference[where].float().log_softmax(-1), logits[where].float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
