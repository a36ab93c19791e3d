"""The laws of tasks, proven with a tokenizer for which every word is one token."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, ClassVar, Literal

from reprbasis.interfaces.task import ContrastPair
from reprbasis.interfaces.tokens import Example, TokenSequence

from ..toys import WordTokenizer, toy_tokens
from .base import ComponentContract

SPLITS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")


class TaskContract(ComponentContract):
    """Suite of kind `task`.

        class TestAgreement(TaskContract):
            name, config = "sva", {"set": "simple"}

    Attributes:
        most: pairs that are looked at in each split.
    """

    kind = "task"
    most: ClassVar[int] = 200

    def tokenizer(self) -> Any:
        """The tokenizer the task is tried with; override it if the task needs a real one."""
        return WordTokenizer()

    def draw(self, split: Literal["train", "validation", "test"] = "train", *, seed: int = 0,
             tokenizer: Any = None) -> list[ContrastPair]:
        """The first pairs of a split."""
        return list(islice(self.create().pairs(tokenizer or self.tokenizer(), split, seed), self.most))

    def tokens(self, example: Example, tokenizer: Any) -> TokenSequence:
        """An example as tokens; override it together with `tokenizer` for dialogues in a real chat template."""
        return toy_tokens(example, tokenizer)

    def test_every_split_has_pairs(self) -> None:
        """Train, validation and test are never empty. If it fails, give each split its own words or templates."""
        assert all(self.draw(split) for split in SPLITS)

    def test_sides_have_equal_length(self) -> None:
        """Clean and corrupt align token by token. If it fails, keep only fillers with as many tokens as their partner."""
        tokenizer = self.tokenizer()
        for pair in self.draw(tokenizer=tokenizer):
            if pair.corrupt is not None:
                clean, corrupt = (self.tokens(e, tokenizer) for e in (pair.clean, pair.corrupt))
                assert len(clean) == len(corrupt), pair.key
                a, b = ((s.ids if s.contents is None else s.contents).tolist() for s in (clean, corrupt))
                assert a != b, f"{pair.key}: both sides are the same prompt"

    def test_contrast_is_declared(self) -> None:
        """`contrast` stands in the declaration exactly when every pair has a corrupted side and wrong answers."""
        has = [pair.corrupt is not None and len(pair.wrong) > 0 for pair in self.draw()]
        assert all(has) == ("contrast" in self.registered.component.provides)

    def test_the_seed_decides_everything(self) -> None:
        """The same seed gives the same pairs in the same order. If it fails, draw from `random.Random(seed)` alone."""
        assert self.draw(seed=3) == self.draw(seed=3)

    def test_keys_are_unique_and_splits_share_none(self) -> None:
        """A pair is in one split only, whatever the seed. If it fails, split the fillers before combining them."""
        owner: dict[str, str] = {}
        for split in SPLITS:
            keys = [pair.key for pair in self.draw(split)]
            assert all(keys), f"{split}: a key is empty"
            assert len(set(keys)) == len(keys), f"{split}: a key occurs twice"
            for key in {*keys, *(pair.key for pair in self.draw(split, seed=1))}:
                assert owner.setdefault(key, split) == split, f"'{key}' is in {owner[key]} and in {split}"

    def test_splits_share_no_prompt(self) -> None:
        """No prompt of one split is in another, so that nothing is tested on what it was found on."""
        seen: dict[tuple[Any, ...], str] = {}
        for split in SPLITS:
            for pair in self.draw(split):
                prompt = (pair.clean.text, pair.clean.messages, tuple(map(str, pair.clean.images)))
                assert seen.setdefault(prompt, split) == split, f"a prompt is in {seen[prompt]} and in {split}: {prompt}"

    def test_answers_are_token_ids(self) -> None:
        """Answers are ids of this tokenizer, and none is both right and wrong. If it fails, tokenise with the space."""
        tokenizer = self.tokenizer()
        for pair in self.draw(tokenizer=tokenizer):
            assert pair.answer, pair.key
            assert all(0 <= i < len(tokenizer) and tokenizer.decode([i]).strip() for i in (*pair.answer, *pair.wrong))
            assert not set(pair.answer) & set(pair.wrong), pair.key

    def test_roles_are_positions(self) -> None:
        """Roles point at tokens of the prompt. If it fails, count positions in tokens after the template is applied."""
        tokenizer = self.tokenizer()
        for pair in self.draw(tokenizer=tokenizer):
            clean = self.tokens(pair.clean, tokenizer)
            roles = self.create().locate(pair, clean)
            assert all(0 <= at < len(clean) for where in roles.values() for at in where), (pair.key, dict(roles))

    def test_meta_is_json(self) -> None:
        """Slot values are stored with results. If it fails, put strings and numbers into `meta`."""
        for pair in self.draw():
            assert _is_json(pair.meta), pair.meta


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_json(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (str, int, float, bool))
