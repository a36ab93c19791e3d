"""The laws of models on every family, with text; `test_images.py` goes on with images.

Padding on both sides, packing and the cache are among the laws; `SHAPES` says what else each family is tried with.
"""

from typing import ClassVar

import pytest
import torch
from reprbasis_lvlm.tiny import checkpoint
from transformers import AutoModelForImageTextToText

from reprbasis.testing import CorpusContract, ModelContract

SHAPES = {  # every format with every kernel; one, two and all (four) key/value heads; embeddings tied and apart
    "plain": ({}, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "eager": ({"attention": "eager"}, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "half": ({"dtype": "bfloat16"}, {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "half_eager": ({"dtype": "bfloat16", "attention": "eager"}, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
}


class Lvlm(ModelContract):
    __test__ = False
    name = "lvlm"
    family = ""
    changes: ClassVar[dict] = {}

    def hf_config(self):
        raise AssertionError("make_checkpoint does without")

    def make_checkpoint(self, folder):
        return checkpoint(folder, self.family, **self.changes)

    def load_reference(self):
        dtype = getattr(torch, self.options().get("dtype", "float32"))
        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=dtype, attn_implementation="eager").eval()

    def test_embeddings_are_tied_as_asked(self):
        network = self.model.network
        tied = network.get_input_embeddings().weight.data_ptr() == network.get_output_embeddings().weight.data_ptr()
        assert tied == self.changes["tie_word_embeddings"]


for _family in ("llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "idefics3", "smolvlm"):
    for _name, (_config, _changes) in SHAPES.items():
        _class = f"Test_{_family}_{_name}".replace("-", "_").replace(".", "_")
        globals()[_class] = type(_class, (Lvlm,), {
            "__module__": __name__, "__test__": True, "family": _family, "config": _config, "changes": _changes})


class TestLlavaQwen3(Lvlm):
    __test__ = True
    family, changes = "llava-qwen3", {"tie_word_embeddings": False}


class TestScenes(CorpusContract):
    name, config = "scenes", {"count": 6, "turns": 2}


@pytest.fixture(autouse=True)
def _quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
