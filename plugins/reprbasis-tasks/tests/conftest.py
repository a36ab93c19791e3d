"""Tokenizers that join text differently: whole words, bytes, and the real model's."""

import json

import pytest

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
    return {"words": WordTokenizer(20_000), "bytes": tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))}


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
