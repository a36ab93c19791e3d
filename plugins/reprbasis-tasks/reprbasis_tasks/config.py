"""Options of the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from reprbasis import ComponentConfig, Selection, Use
from reprbasis.kits.template_config import TemplateConfig


class AgreementConfig(TemplateConfig):
    """Subject-verb agreement."""

    set: Literal["simple", "nounpp", "rc", "within_rc"] = "nounpp"
    """`simple`: The friend; `nounpp`: The friend near the cars; `rc`: The friend that the chefs like; `within_rc`: The friend
    that the chefs, where the verb agrees with the inner noun."""


class IndirectObjectConfig(TemplateConfig):
    """Indirect object identification."""

    order: Literal["both", "abba", "baba"] = "both"
    """Whether the name that is said twice comes second (`abba`) or first (`baba`) in the first clause."""

    templates: tuple[int, ...] = ()
    """Which of the templates 0 to 7 are used; empty: all. Templates left out here are unseen templates for later."""

    corruption: Literal["abc", "swap"] = "abc"
    """`abc`: three other names, so that no name is said twice; `swap`: the other name is said twice, and the answer turns
    over."""


class DictKeyConfig(TemplateConfig):
    """Looking up a key of a dictionary in the Python shell."""

    entries: int = Field(5, ge=2, le=8)
    """Entries of the dictionary."""

    change: Literal["both", "query", "key"] = "both"
    """What makes the key absent: the query is another name, the key in the dictionary is, or half of the pairs each."""

    quotes: Literal["double", "single"] = "double"
    """Quotes around the query; those in the dictionary are single. tiny-qwen3 has read single ones."""

    family: Literal["A1", "A2", "A3", "A4", "A5", "A6", "B1", "B2"] | None = None
    """Adversarial prompts instead: the name of an absent key stands elsewhere (`A1` a value, `A2` a comment, `A3` a key of
    another dictionary, `A4` a variable, `A5` deleted, `A6` printed); the key is there although no token of it repeats (`B1`);
    the key is there as another type (`B2`). The corrupted side is the control: the same text with a third name there."""


class ListIndexConfig(TemplateConfig):
    """Looking up an index of a list in the Python shell."""

    length: int = Field(6, ge=2, le=8)
    """Entries of the list; an index above it is out of range."""


class InductionConfig(TemplateConfig):
    """Continuing a list of words whose beginning repeats."""

    words: int = Field(6, ge=3, le=40)
    """Words in the list."""

    repeated: int = Field(3, ge=1)
    """Words said again, the last of which is the query; 1: the query alone."""

    corruption: Literal["absent", "other"] = "absent"
    """`absent`: in the list another word stands for the query, which so repeats nothing; `other`: the query is another word of
    the list, and the answer turns over."""

    @model_validator(mode="after")
    def _fits(self) -> InductionConfig:
        if self.repeated > self.words - 2:
            raise ValueError("repeated must be words - 2 or less")
        return self


class GreaterThanConfig(TemplateConfig):
    """Years after a year."""


class PronounConfig(TemplateConfig):
    """The pronoun of a name."""


class CapitalConfig(TemplateConfig):
    """Capitals of countries."""

    lengths: Literal["one", "any"] = "any"
    """`one`: only countries with the most common number of tokens; `any`: also others, paired by number of tokens."""

    templates: tuple[int, ...] = (0,)
    """Which of the wordings 0 to 3 are used; empty: all."""


class JsonConfig(ComponentConfig):
    """Rows of the published format, from a file."""

    path: Path
    """JSON list or JSON lines of rows with clean_prefix, patch_prefix, clean_answer, patch_answer and optionally case."""

    test_path: Path | None = None
    """File of the test split; its rows that share a prompt with `path` are left out. Null: `path` is split, keeping together rows
    that share a prompt."""

    length: int | None = Field(None, ge=1)
    """Keep only prompts of this many tokens (with what the tokenizer puts before a text); null: the most common number."""


class PromptsConfig(ComponentConfig):
    """The prompts of tasks, as a corpus."""

    tasks: tuple[Annotated[Selection, Use("task")], ...] = Field(min_length=1)
    """Whose prompts."""

    split: Literal["train", "validation", "test"] = "train"
    """Which of them; a dictionary should not see the prompts that it is judged on."""
