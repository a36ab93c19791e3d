"""Tokenizers that join text differently: words, bytes, pieces with a mark for a space, digits in groups, the real model's."""

import json
from itertools import islice

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import reprbasis
from reprbasis.testing.models import tiny_tokenizer
from reprbasis.testing.toys import WordTokenizer


@pytest.fixture(scope="session")
def smollm2():
    """The real model (its tokenizer splits numbers into digits)."""
    return reprbasis.create("model", "llama", checkpoint="smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """Name -> tokenizer."""
    words = WordTokenizer(20_000)
    texts = [side.text + answer for task in ("sva", "ioi", "dict-key", "list-index")
             for split in ("train", "validation", "test")
             for pair in islice(reprbasis.create("task", task).pairs(words, split, 0), 100)
             for side, answer in ((pair.clean, told(pair.meta["answer"])), (pair.corrupt, told(pair.meta["wrong"])))]
    return {"words": words, "bytes": tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")), "pieces": pieces(texts),
            "groups": groups(texts)}


def told(answer):
    """The first of several answers."""
    return answer if isinstance(answer, str) else answer[0]


def pieces(texts):
    """As SentencePiece does it: a mark in place of a space and before the text, single digits, a token that begins every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Punctuation()])
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    return trained(core, texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=["<s>"], show_progress=False), first="<s>")


def groups(texts):
    """As GPT-4 does it: bytes, up to three digits in one token, and brackets that join the line's end."""
    core = Tokenizer(models.BPE())
    cut = Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(cut, "isolated"),
                                                  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    return trained(core, texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=["<|end|>"], show_progress=False,
                                                    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def trained(core, texts, trainer, first=None):
    """The tokenizer; with `first`, that token begins every text."""
    core.train_from_iterator(texts, trainer)
    if first:
        core.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=first)


@pytest.fixture
def rows(tmp_path):
    """A file in the published format: agreement, singular and plural, with four verbs."""
    path = tmp_path / "rows.json"
    nouns = [f"{a}{b}" for a in ("door", "cat", "dog", "car", "tree", "book") for b in ("man", "keeper")]
    rows = [{"clean_prefix": f"The {one}", "patch_prefix": f"The {other}", "clean_answer": x, "patch_answer": y, "case": case}
            for noun in nouns for sg, pl in ((" is", " are"), (" has", " have"))
            for one, other, x, y, case in ((noun, f"{noun}s", sg, pl, "singular"), (f"{noun}s", noun, pl, sg, "plural"))]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
