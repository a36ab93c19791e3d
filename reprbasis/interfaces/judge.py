"""Kind `judge`: say what passages have in common, and of other passages whether they show it.

A judge is what stands in for a person who looks at a feature. It sees text alone, never an activation: numbers are what language
models handle worst, and what a judge could otherwise copy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .base import C, Configured

if TYPE_CHECKING:
    from .model import ModelAdapter


@dataclass(frozen=True)
class Passage:
    """A stretch of text, some of whose tokens may be marked.

    Args:
        tokens: the text of each token.
        ids: their ids in the vocabulary of the model whose features are judged.
        marked: places of the marked tokens. None marked: the passage as a whole is meant.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    marked: tuple[int, ...] = ()

    def text(self, left: str = "<<", right: str = ">>") -> str:
        """The text with its marked tokens set apart."""
        return "".join(f"{left}{t}{right}" if i in self.marked else t for i, t in enumerate(self.tokens))


@dataclass(frozen=True)
class Explanation:
    """What a judge takes passages to have in common.

    Args:
        text: for people, one line.
        details: what the judge keeps for itself.
    """

    text: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Judge(Configured[C]):
    """Explains and recognises."""

    @abstractmethod
    def explain(self, shown: Sequence[Passage], contrast: Sequence[Passage] = (), *, model: ModelAdapter[Any]) -> Explanation:
        """What the marked tokens of `shown` have in common, and those of `contrast` (nothing marked) lack.

        Args:
            shown: one passage or more, each with a mark.
            contrast: passages that do not have it; may be empty.
            model: the model whose features are judged. A judge may ask it, or use its tokenizer and weights.
        """

    @abstractmethod
    def match(self, explanation: Explanation, passages: Sequence[Passage], *, model: ModelAdapter[Any]) -> Tensor:
        """[n] between 0 (no) and 1 (yes): is it what the marked tokens are, or, where none is marked, is it in the passage?

        Each passage is judged for itself; what else is asked about must not matter.
        """
