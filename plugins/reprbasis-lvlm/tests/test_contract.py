"""The laws of models on every family, with text; `test_images.py` goes on with images."""

from typing import ClassVar

import pytest
import torch
from reprbasis_lvlm.tiny import checkpoint
from transformers import AutoModelForImageTextToText

from reprbasis.testing import CorpusContract, ModelContract


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


class TestLlava(Lvlm):
    __test__ = True
    family = "llava"


class TestLlavaTiedEager(Lvlm):
    __test__ = True
    family, config, changes = "llava", {"attention": "eager"}, {"tie_word_embeddings": True, "num_key_value_heads": 1}


class TestLlavaQwen3(Lvlm):
    __test__ = True
    family, changes = "llava-qwen3", {"num_key_value_heads": 4}


class TestLlavaHalf(Lvlm):
    __test__ = True
    family, config = "llava", {"dtype": "bfloat16"}


class TestQwen2(Lvlm):
    __test__ = True
    family = "qwen2-vl"


class TestQwen2Eager(Lvlm):
    __test__ = True
    family, config = "qwen2-vl", {"attention": "eager"}


class TestQwen25(Lvlm):
    __test__ = True
    family = "qwen2.5-vl"


class TestQwen3(Lvlm):
    __test__ = True
    family = "qwen3-vl"


class TestQwen3Half(Lvlm):
    __test__ = True
    family, config = "qwen3-vl", {"dtype": "bfloat16"}


class TestIdefics3(Lvlm):
    __test__ = True
    family = "idefics3"


class TestSmolVLM(Lvlm):
    __test__ = True
    family = "smolvlm"


class TestScenes(CorpusContract):
    name, config = "scenes", {"count": 6, "turns": 2}


@pytest.fixture(autouse=True)
def _quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
