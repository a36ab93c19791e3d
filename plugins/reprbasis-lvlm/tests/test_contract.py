"""The laws of models on every family, with text; `test_images.py` goes on with images.

Each family in float32 and bfloat16, with SDPA and eager attention, one, two and all key/value heads, embeddings tied and apart.
Padding on both sides, packing and the cache are among the laws.
"""

from typing import ClassVar

import pytest
import torch
from reprbasis_lvlm.tiny import checkpoint
from transformers import AutoModelForImageTextToText

from reprbasis.testing import CorpusContract, ModelContract

ONE_TIED = {"num_key_value_heads": 1, "tie_word_embeddings": True}
ALL_APART = {"num_key_value_heads": 4, "tie_word_embeddings": False}


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
        assert tied == self.changes.get("tie_word_embeddings", tied)


class TestLlava(Lvlm):
    __test__ = True
    family = "llava"


class TestLlavaEager(Lvlm):
    __test__ = True
    family, config, changes = "llava", {"attention": "eager"}, ONE_TIED


class TestLlavaHalf(Lvlm):
    __test__ = True
    family, config, changes = "llava", {"dtype": "bfloat16"}, ALL_APART


class TestLlavaHalfEager(Lvlm):
    __test__ = True
    family, config, changes = "llava", {"dtype": "bfloat16", "attention": "eager"}, ONE_TIED


class TestLlavaQwen3(Lvlm):
    __test__ = True
    family, changes = "llava-qwen3", ALL_APART


class TestQwen2(Lvlm):
    __test__ = True
    family = "qwen2-vl"


class TestQwen2Eager(Lvlm):
    __test__ = True
    family, config, changes = "qwen2-vl", {"attention": "eager"}, ONE_TIED


class TestQwen2Half(Lvlm):
    __test__ = True
    family, config, changes = "qwen2-vl", {"dtype": "bfloat16"}, ALL_APART


class TestQwen2HalfEager(Lvlm):
    __test__ = True
    family, config, changes = "qwen2-vl", {"dtype": "bfloat16", "attention": "eager"}, ONE_TIED


class TestQwen25(Lvlm):
    __test__ = True
    family = "qwen2.5-vl"


class TestQwen25Eager(Lvlm):
    __test__ = True
    family, config, changes = "qwen2.5-vl", {"attention": "eager"}, ONE_TIED


class TestQwen25Half(Lvlm):
    __test__ = True
    family, config, changes = "qwen2.5-vl", {"dtype": "bfloat16"}, ALL_APART


class TestQwen25HalfEager(Lvlm):
    __test__ = True
    family, config, changes = "qwen2.5-vl", {"dtype": "bfloat16", "attention": "eager"}, ONE_TIED


class TestQwen3(Lvlm):
    __test__ = True
    family = "qwen3-vl"


class TestQwen3Eager(Lvlm):
    __test__ = True
    family, config, changes = "qwen3-vl", {"attention": "eager"}, ONE_TIED


class TestQwen3Half(Lvlm):
    __test__ = True
    family, config, changes = "qwen3-vl", {"dtype": "bfloat16"}, ALL_APART


class TestQwen3HalfEager(Lvlm):
    __test__ = True
    family, config, changes = "qwen3-vl", {"dtype": "bfloat16", "attention": "eager"}, ONE_TIED


class TestIdefics3(Lvlm):
    __test__ = True
    family = "idefics3"


class TestIdefics3Eager(Lvlm):
    __test__ = True
    family, config, changes = "idefics3", {"attention": "eager"}, ONE_TIED


class TestIdefics3Half(Lvlm):
    __test__ = True
    family, config, changes = "idefics3", {"dtype": "bfloat16"}, ALL_APART


class TestIdefics3HalfEager(Lvlm):
    __test__ = True
    family, config, changes = "idefics3", {"dtype": "bfloat16", "attention": "eager"}, ONE_TIED


class TestSmolVLM(Lvlm):
    __test__ = True
    family = "smolvlm"


class TestSmolVLMEager(Lvlm):
    __test__ = True
    family, config, changes = "smolvlm", {"attention": "eager"}, ONE_TIED


class TestSmolVLMHalf(Lvlm):
    __test__ = True
    family, config, changes = "smolvlm", {"dtype": "bfloat16"}, ALL_APART


class TestSmolVLMHalfEager(Lvlm):
    __test__ = True
    family, config, changes = "smolvlm", {"dtype": "bfloat16", "attention": "eager"}, ONE_TIED


class TestScenes(CorpusContract):
    name, config = "scenes", {"count": 6, "turns": 2}


@pytest.fixture(autouse=True)
def _quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
