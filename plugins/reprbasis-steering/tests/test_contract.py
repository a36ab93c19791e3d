import json
from dataclasses import replace

import pytest
import torch

from reprbasis.testing import EvaluatorContract


class TestSteering(EvaluatorContract):
    name, config = "steering", {"alphas": [0.5, 2.0], "latents": 2, "random_latents": 2, "random_directions": 2, "max_new": 4,
                                "rounds": 1, "resamples": 100}

    @pytest.fixture(autouse=True, scope="class")
    def _dialogues(self, request, tmp_path_factory, _prepare):
        cls = request.cls
        table = cls.inputs.activations.table  # the toy corpus is plain text: some words play the special tokens
        flags = {**table.flags, "special": torch.isin(table.ids, table.ids[1:3])}
        cls.inputs = replace(cls.inputs, activations=replace(cls.inputs.activations, table=replace(table, flags=flags)))
        path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
        known = [p.strip() for p in cls.inputs.model.tokenizer.pieces if p.startswith(" ")]  # the toy has room for few
        path.write_text("".join(json.dumps({"prompt": f" {w}", "check": {"any": [w]}}) + "\n" for w in known[:4]))
        cls.path = path

    def options(self):
        return {**self.config, "prompts": self.path}
