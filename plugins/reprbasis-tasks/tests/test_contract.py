"""Every task obeys the laws of its kind; other options and tokenizers are in test_pairs.py."""

import pytest

from reprbasis.testing import TaskContract


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
