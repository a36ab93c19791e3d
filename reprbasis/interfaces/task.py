"""Kind `task`: aligned clean/corrupt prompt pairs with answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .base import C, Configured
from .tokens import Example, TokenSequence

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ContrastPair:
    """Two prompts of equal token length that differ where the behaviour differs.

    Args:
        clean: the prompt whose behaviour is studied.
        corrupt: its counterpart, whose right answer is `wrong`; None for tasks without contrast.
        answer: token ids accepted after `clean`.
        wrong: token ids to compare with, other than `answer`; those accepted after `corrupt` if the pair is mirrored.
        roles: name -> token positions that play this role (in both prompts).
        key: stable identifier.
        meta: slot values and anything else, JSON values; `case` names the variant, for counts by case.
        mirrored: whether `wrong` is the right answer after `corrupt`; False where the corrupted prompt only lacks what
            decides the answer (random names), so that nothing is right or wrong there.
    """

    clean: Example
    corrupt: Example | None
    answer: tuple[int, ...]
    wrong: tuple[int, ...]
    roles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    key: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    mirrored: bool = True


class Task(Configured[C]):
    """A behaviour worth explaining. Splits share no slot values."""

    @abstractmethod
    def pairs(self, tokenizer: Any, split: Split, seed: int) -> Iterator[ContrastPair]:
        """Pairs in a fixed order given `seed`; clean and corrupt have the same number of tokens.

        Positions (roles) count what the tokenizer puts before a text, as `tokenizer(text)` does.
        """

    def locate(self, pair: ContrastPair, clean: TokenSequence) -> Mapping[str, tuple[int, ...]]:
        """Roles of a pair in its clean prompt as a model has tokenised it: by default those that the pair states.

        A task overrides it if its roles depend on the model, as the tokens of an image do.
        """
        return pair.roles
