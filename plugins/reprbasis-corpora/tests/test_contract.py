from pathlib import Path

import pytest

from reprbasis.testing import CorpusContract


class TestPromptSet(CorpusContract):
    name, config = "chat", {"limit": 40, "shuffle": True}


class TestText(CorpusContract):
    name = "text"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("One.\n\nTwo.\n")
        self.folder = tmp_path / "texts"

    def options(self):
        return {"path": str(self.folder), "unit": "line", "shuffle": True}


class TestMix(CorpusContract):
    name, config = "mix", {"sources": [{"use": "chat", "limit": 20}, {"use": "chat", "limit": 30, "shuffle": True}],
                           "short": "whole"}


class TestHub(CorpusContract):
    name, config = "hub", {"dataset": "numinamath-cot", "path": str(Path(__file__).parent / "fixtures" / "numinamath-cot.jsonl")}
