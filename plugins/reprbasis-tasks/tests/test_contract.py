"""Every task obeys the laws of its kind; other options and tokenizers are in test_pairs.py."""

from types import SimpleNamespace

import pytest

from reprbasis.interfaces.corpus import CorpusContext
from reprbasis.testing import CorpusContract, TaskContract
from reprbasis.testing.toys import WordTokenizer


class Quick(TaskContract):
    most = 60


class TestAgreement(Quick):
    name = "sva"


class TestIndirectObject(Quick):
    name = "ioi"


class TestPronoun(Quick):
    name = "pronoun"


class TestDictKey(Quick):
    name = "dict-key"


class TestListIndex(Quick):
    name = "list-index"


class TestInduction(Quick):
    name = "induction"


class TestGreaterThan(Quick):
    name = "greater-than"


class TestCapital(Quick):
    name = "country-capital"


class TestJson(Quick):
    name = "json"

    @pytest.fixture(autouse=True)
    def _file(self, rows):
        self.rows = rows

    def options(self):
        return {"path": str(self.rows)}


class TestPrompts(CorpusContract):
    name, config = "prompts", {"tasks": [{"use": "induction", "size": 6}, {"use": "induction", "size": 3, "words": 5}]}

    def context(self, scratch):
        return CorpusContext(model=SimpleNamespace(tokenizer=WordTokenizer()), scratch=scratch)  # all that a task asks of a model

    def test_every_prompt_once_and_both_sides(self, examples):
        texts = [e.text for e in examples]
        assert len(set(texts)) == len(texts) > 9
