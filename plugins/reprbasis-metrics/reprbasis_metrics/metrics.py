"""The metrics.

Shapes: B batch, T tokens, V vocabulary, A accepted answers (padded with -1).
"""

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.metric import Metric, Targets
from reprbasis.interfaces.model import ForwardResult
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.tokenwise import cross_entropy, kl_divergence, predicts

from .config import MetricConfig


def _given(value: Tensor | None, what: str, who: str) -> Tensor:
    if value is None:
        raise DataError(f"{who} needs {what}", do=f"use a task that gives it, or pass Targets({what}=...)")
    return value


def _logits(result: ForwardResult, who: str) -> Tensor:
    if result.logits is None:
        raise DataError(f"{who} needs logits", do='run the model with logits="all"')
    return result.logits


def _everywhere(logits: Tensor, batch: TokenBatch, who: str) -> Tensor:
    if logits.shape[:2] != batch.ids.shape:
        raise DataError(f"{who} needs logits at all {batch.shape[1]} positions, got {logits.shape[1]}",
                        do='run the model with logits="all"')
    return logits


def _last(result: ForwardResult, batch: TokenBatch, who: str) -> Tensor:
    """[B, V] logits at each row's last real token, in float32 or more."""
    logits = _logits(result, who)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(logits), device=logits.device), batch.last()]


def _row_means(values: Tensor, batch: TokenBatch) -> Tensor:
    where = predicts(batch)
    row = torch.nonzero(where)[:, 0]
    total = torch.zeros(batch.shape[0], dtype=values.dtype, device=values.device).index_add(0, row, values)
    return total / where.sum(1).clamp_min(1)


def _best(logits: Tensor, choices: Tensor) -> Tensor:
    """[B] largest logit among the choices of each row."""
    return logits.gather(1, choices.clamp_min(0)).masked_fill(choices < 0, -torch.inf).amax(1)


class CrossEntropy(Metric[MetricConfig]):
    """Mean next-token cross-entropy per row, nats (padding and the seams of packed sequences left out)."""

    higher_is_better = False

    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        """[B]."""
        return _row_means(cross_entropy(_everywhere(_logits(result, "ce"), batch, "ce"), batch), batch)


class KLDivergence(Metric[MetricConfig]):
    """Mean KL(reference || model) over the predicted positions of each row, nats."""

    higher_is_better = False
    needs = frozenset({"reference"})

    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        """[B]."""
        reference = _everywhere(_given(targets.reference, "reference", "kl"), batch, "kl (reference)")
        return _row_means(kl_divergence(reference, _everywhere(_logits(result, "kl"), batch, "kl"), batch), batch)


class LogitDifference(Metric[MetricConfig]):
    """Largest logit among the answers minus the largest among the wrong ones, at the last token."""

    needs = frozenset({"answer", "wrong"})
    answers_only = True

    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        """[B]."""
        logits = _last(result, batch, "logit-diff")
        return (_best(logits, _given(targets.answer, "answer", "logit-diff"))
                - _best(logits, _given(targets.wrong, "wrong", "logit-diff")))


class Probability(Metric[MetricConfig]):
    """Total probability of the accepted answers at the last token."""

    needs = frozenset({"answer"})

    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        """[B]."""
        answer = _given(targets.answer, "answer", "probability")
        p = _last(result, batch, "probability").softmax(-1).gather(1, answer.clamp_min(0))
        return p.masked_fill(answer < 0, 0).sum(1)


class Accuracy(Metric[MetricConfig]):
    """1 where the most likely next token is an accepted answer, else 0."""

    differentiable = False
    needs = frozenset({"answer"})

    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        """[B]."""
        answer = _given(targets.answer, "answer", "accuracy")
        return (_last(result, batch, "accuracy").argmax(-1, keepdim=True) == answer).any(1).float()


class ForcedChoice(Metric[MetricConfig]):
    """1 where the best answer has a larger logit than the best wrong answer, else 0 (chance: 1/2)."""

    differentiable = False
    needs = frozenset({"answer", "wrong"})
    answers_only = True

    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        """[B]."""
        logits = _last(result, batch, "forced-choice")
        return (_best(logits, _given(targets.answer, "answer", "forced-choice"))
                > _best(logits, _given(targets.wrong, "wrong", "forced-choice"))).float()
