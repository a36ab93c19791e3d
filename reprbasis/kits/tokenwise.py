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


class Reference:
    """The unchanged model's predictions on a batch, to compare many other runs with.

    Loss and divergence of another run come from one log-sum-exp and one dot product per position (sum p = 1, so
    KL = sum p log p - sum p l + logsumexp l), two passes over [P, V] instead of eight.

    Args:
        logits: [B, T, V] of the unchanged model.
        batch: what it was run on.
        where: [B, T] bool, a subset of `predicts(batch)`; None: all of it. P is the number of positions.

    Attributes:
        loss: [P] cross-entropy of the unchanged model, nats.
    """

    def __init__(self, logits: Tensor, batch: TokenBatch, where: Tensor | None = None) -> None:
        self._where = predicts(batch) if where is None else predicts(batch) & where
        self._targets = batch.ids.roll(-1, dims=1)[self._where][:, None]
        log_p = logits[self._where].float().log_softmax(-1)
        self.loss = -log_p.gather(1, self._targets)[:, 0]
        self._p = log_p.exp()
        self._negentropy = torch.linalg.vecdot(self._p, log_p)

    def compare(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] of another run -> its cross-entropy [P] and KL(unchanged || other) [P], nats."""
        other = logits[self._where].float()
        total = other.logsumexp(-1)
        loss = total - other.gather(1, self._targets)[:, 0]
        return loss, (self._negentropy - torch.linalg.vecdot(self._p, other) + total).clamp_min(0.0)
