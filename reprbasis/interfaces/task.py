"""Kind `task`: aligned clean/corrupt prompt pairs with answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .base import C, Configured
from .tokens import Example


@dataclass(frozen=True)
class ContrastPair:
    """Two prompts of equal token length that differ where the behaviour differs.

    Args:
        clean: the prompt whose behaviour is studied.
        corrupt: its counterpart, whose right answer is `wrong`; None for tasks without contrast.
        answer: token ids accepted after `clean`.
        wrong: token ids that would be accepted after `corrupt`.
        roles: name -> token positions that play this role (in both prompts).
        key: stable identifier.
        meta: slot values and anything else, JSON values.
    """

    clean: Example
    corrupt: Example | None
    answer: tuple[int, ...]
    wrong: tuple[int, ...]
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    key: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


class Task(Configured[C]):
    """A behaviour worth explaining. Splits share no slot values."""

    @abstractmethod
    def pairs(self, tokenizer: Any, split: Literal["train", "validation", "test"], seed: int) -> Iterator[ContrastPair]:
        """Pairs in a fixed order given `seed`; clean and corrupt have the same number of tokens."""
