"""What every corpus must do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from ...interfaces.corpus import CorpusContext
from ...interfaces.tokens import Example
from .base import ComponentContract


class CorpusContract(ComponentContract):
    """Conformance suite of kind `corpus`. Choose options that give a few dozen examples at most."""

    kind: ClassVar[str] = "corpus"

    def context(self, scratch: Path) -> CorpusContext:
        """What the corpus is given; override it when the options under test need a model."""
        return CorpusContext(scratch=scratch)

    @pytest.fixture
    def examples(self, tmp_path: Path) -> list[Example]:
        """All examples for seed 0."""
        return list(self.create().examples(seed=0, context=self.context(tmp_path / "examples")))

    def test_gives_examples(self, examples: list[Example]) -> None:
        """A corpus gives at least one `Example`, or raises `DataError`. If it fails, check the options of the test."""
        assert examples
        assert all(isinstance(e, Example) for e in examples)

    def test_keys_are_unique(self, examples: list[Example]) -> None:
        """Splits go by `key`. If it fails, take the row's id, or its place in the file."""
        keys = [e.key for e in examples]
        assert all(keys)
        assert len(set(keys)) == len(keys)

    def test_dialogues_are_well_formed(self, examples: list[Example]) -> None:
        """Chat templates know three roles and no empty turns. If it fails, map the roles and leave empty turns out."""
        for example in examples:
            assert example.text is None or example.text.strip()
            for message in example.messages or ():
                assert message.role in ("system", "user", "assistant")
                assert message.content.strip() or message.images or message.role == "assistant"

    def test_meta_is_json(self, examples: list[Example]) -> None:
        """`meta` is stored beside the activations. If it fails, put plain JSON values there."""
        assert [json.loads(json.dumps(e.meta, allow_nan=False)) for e in examples] == [dict(e.meta) for e in examples]

    def test_same_seed_same_examples(self, examples: list[Example], tmp_path: Path) -> None:
        """Resumption needs a fixed order. If it fails, draw only from a generator of your own, made from `seed`."""
        for corpus in (same := self.create(), same):
            assert list(corpus.examples(seed=0, context=self.context(tmp_path / "again"))) == examples

    def test_starts_again_after_an_interruption(self, examples: list[Example], tmp_path: Path) -> None:
        """A killed harvest reads the corpus again. If it fails, what is left in `scratch` changes the result."""
        corpus, scratch = self.create(), tmp_path / "interrupted"
        assert next(corpus.examples(seed=0, context=self.context(scratch))) == examples[0]
        assert list(corpus.examples(seed=0, context=self.context(scratch))) == examples

    def test_leaves_global_generators_alone(self, tmp_path: Path) -> None:
        """Other parts of a run must not depend on the corpus. If it fails, use `random.Random(seed)`."""
        before = random.getstate(), torch.get_rng_state()
        list(self.create().examples(seed=1, context=self.context(tmp_path)))
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
