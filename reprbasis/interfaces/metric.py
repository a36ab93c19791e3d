"""Kind `metric`: one number per example.

Shapes: B batch, T tokens, V vocabulary, A accepted answers (padded with -1).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import C, Configured
from .model import ForwardResult
from .tokens import TokenBatch


@dataclass(frozen=True)
class Targets:
    """What a metric may compare with.

    Args:
        answer: [B, A] accepted token ids, -1 where there is none.
        wrong: [B, A] the ids that would be right after the corrupted prompt.
        reference: logits of the unchanged model on the same batch, [B, T, V] or [B, 1, V].
    """

    answer: Tensor | None = None
    wrong: Tensor | None = None
    reference: Tensor | None = None

    def take(self, rows: Tensor) -> Targets:
        """Of these rows of the batch, [n] indices."""
        return Targets(*(None if t is None else t[rows] for t in (self.answer, self.wrong, self.reference)))


class Metric(Configured[C]):
    """A number per row of the batch."""

    higher_is_better: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    """Whether it has a gradient with respect to the logits (counts and comparisons have none)."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Which of `answer`, `wrong`, `reference` it uses."""
    answers_only: ClassVar[bool] = False
    """Whether it reads, of the last token, no logits but those of answers and wrong answers (then only those are computed)."""

    @abstractmethod
    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        """[B]."""
