"""The published JSON format."""

import json
from collections import Counter

import pytest

import reprbasis
from reprbasis.errors import DataError

FIELDS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer", "case")
ROWS = [dict(zip(FIELDS, row, strict=True)) for row in (  # one row of each published set
    ("The friends", "The friend", " have", " has", "plural"),
    ("The uncle", "The uncles", " has", " have", "singular"),
    ("Then, Aaron and Laura had a lot of fun at the restaurant. Aaron gave a snack to",
     "Then, Alexander and Brittany had a lot of fun at the restaurant. Jose gave a snack to", " Laura", " Aaron", "BABA_21"),
    (">>> scores = [48, 85, 27, 43, 46]\n>>> scores[3]\n", ">>> scores = [48, 85, 27, 43, 46]\n>>> scores[9]\n", 4, "Traceback",
     "no_err"),
)]


def drawn(tokenizer, path, split="train", **options):
    return list(reprbasis.create("task", "json", path=str(path), **options).pairs(tokenizer, split, 0))


@pytest.mark.parametrize("form", ["list", "lines"])
@pytest.mark.parametrize("row", ROWS, ids=lambda r: r["case"])
def test_published_rows_are_read(tmp_path, tokenizers, row, form):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]) if form == "list" else json.dumps(row) + "\n")
    [pair] = drawn(tokenizers["words"], path)
    decode = tokenizers["words"].decode
    assert (pair.clean.text, pair.corrupt.text) == (row["clean_prefix"], row["patch_prefix"])
    assert (decode(pair.answer), decode(pair.wrong)) == (str(row["clean_answer"]), row["patch_answer"])
    assert pair.meta["case"] == row["case"]
    assert pair.mirrored == (row["case"] != "BABA_21")


def test_rows_that_share_a_prompt_stay_together(rows, tokenizers):
    prompts = {split: {e.text for p in drawn(tokenizers["words"], rows, split) for e in (p.clean, p.corrupt)}
               for split in ("train", "validation", "test")}
    assert all(prompts.values())
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    assert sum(len(drawn(tokenizers["words"], rows, s)) for s in prompts) == len(rows.read_text().splitlines())


def test_a_test_file_keeps_only_what_training_has_not(rows, tmp_path, tokenizers):
    fresh = {"clean_prefix": "The moon", "patch_prefix": "The moons", "clean_answer": " is", "patch_answer": " are"}
    other = tmp_path / "test.json"
    other.write_text(rows.read_text().splitlines()[0] + "\n" + json.dumps(fresh))
    [pair] = drawn(tokenizers["words"], rows, "test", test_path=str(other))
    assert pair.clean.text == "The moon"


def test_one_length(tmp_path, tokenizers):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([
        {"clean_prefix": f"The {noun}{tail}", "patch_prefix": f"The {noun}s{tail}", "clean_answer": " is", "patch_answer": " are"}
        for noun in ("car", "dog", "tree", "cat") for tail in ("", " here", " there")]))
    assert Counter(len(p.clean.text.split()) for p in drawn(tokenizers["words"], path)).keys() == {3}
    assert Counter(len(p.clean.text.split()) for p in drawn(tokenizers["words"], path, length=2)).keys() == {2}


@pytest.mark.parametrize(("content", "message"), [
    ("", "no rows"), ('{"clean_prefix": "a"}', "lacks patch_prefix"), ("[1]", "lacks clean_prefix"), ("{", "not JSON"),
    ('[{"clean_prefix": 1', "not JSON"), (None, "cannot be read"),
])
def test_faulty_files(tmp_path, tokenizers, content, message):
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        drawn(tokenizers["words"], path)
    assert "rows.json" in str(error.value)
