import json

import pytest

from reprbasis.testing import EvaluatorContract


class TestEntropy(EvaluatorContract):
    name, config = "entropy", {"tokens": 90, "tree_bits": 8}


class TestICL(EvaluatorContract):
    name, config = "icl-entropy", {"prompts": 12, "shots": [0, 1], "batch": 5, "tree_bits": 8}

    @pytest.fixture(autouse=True, scope="class")
    def _pairs(self, request, tmp_path_factory, _prepare):
        path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
        known = [p.strip() for p in request.cls.inputs.model.tokenizer.pieces if p.startswith(" ")]  # the toy has room for few
        path.write_text("".join(json.dumps({"question": f"q{i}", "answer": known[i]}) + "\n" for i in range(4)))
        request.cls.path = path

    def options(self):
        return {**self.config, "pairs": self.path}
