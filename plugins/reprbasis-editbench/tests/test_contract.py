from pathlib import Path

from reprbasis.testing import CorpusContract, StepContract

FIXTURES = Path(__file__).parent / "fixtures"
WISH = "w1 w2 w3 -> w9"


class TestEdit(StepContract):
    name, config = "edit", {"request": WISH, "texts": "toy-words", "editor": {"use": "ga", "lr": 0.02, "steps": 3}}


class TestEditScore(StepContract):
    name, config = "edit-score", {"request": WISH, "texts": "toy-words"}


class TestUnlearning(CorpusContract):
    name, config = "unlearning", {"dataset": "tofu", "path": str(FIXTURES / "tofu.jsonl")}
