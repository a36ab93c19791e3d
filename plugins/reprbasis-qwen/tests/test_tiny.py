"""The tiny trained model in this package does what its recipe says: measured again from the checkpoint, beside its controls."""

import hashlib
import json
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from reprbasis_qwen.config import TINY
from reprbasis_qwen.model import tiny
from safetensors import safe_open

import reprbasis as rb
from reprbasis.runtime.trial import trial

RECIPE = Path(__file__).parents[3] / "examples" / "tiny_models"


@pytest.fixture(scope="module")
def recipe():
    """The modules of the recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        import text_data
        import text_measure

        yield text_data, text_measure


@pytest.fixture(scope="module")
def noted():
    return json.loads((tiny() / "recipe.json").read_text())


@pytest.fixture(scope="module")
def measured(recipe):
    return recipe[1].measure(rb.create("model", "qwen", checkpoint=TINY), n=200)


@pytest.mark.parametrize("family", ["ioi", "sva", "dict", "induction", "lookup"])
def test_it_solves_held_out_combinations_and_the_shuffled_control_does_not(family, measured, noted):
    found, told = measured[family], noted["held_out"][family]
    error = (found["chance"] * (1 - found["chance"]) / found["n"]) ** 0.5
    assert found["accuracy"] > 0.9
    assert abs(found["accuracy"] - told["accuracy"]) < 0.05
    assert found["shuffled"] < found["chance"] + 4 * error
    assert min(found["cases"].values()) > 0.8, found["cases"]


def test_nothing_that_is_tested_was_trained_on(recipe):
    """A hash decides: the combination that a test document asks for is in no training document."""
    data, _ = recipe
    for family in data.FAMILIES:
        trained = {d.text for d in islice(data.documents(family, "train", 0), 3000)}
        assert not any(d.text in trained for d in islice(data.documents(family, "test", 0), 500))
    listed = [d.text.partition(";")[0].split(", ") for d in islice(data.documents("induction", "train", 0), 500)]
    assert not any(data.held_out("induction", a, b) for words in listed for a, b in pairwise(words))


def test_the_data_is_what_was_trained_on(recipe, noted):
    """The hash of all training documents of each stage, made again."""
    data, _ = recipe
    for index, stage in enumerate(noted["stages"]):
        streams = {family: data.documents(family, "train", noted["seed"] + 1000 * index) for family in stage["mixture"]}
        digest = hashlib.sha256()
        for _ in range(stage["steps"]):
            for family, count in stage["mixture"].items():
                digest.update("".join(d.text for d in islice(streams[family], count)).encode())
        assert digest.hexdigest() == stage["data_sha256"]


def test_the_sample_for_harvesting_is_what_the_recipe_writes(recipe, monkeypatch, capsys):
    data, _ = recipe
    written = (RECIPE / "text_sample.txt").read_text()
    monkeypatch.setattr("sys.argv", ["text_data.py", str(written.count("\n\n") + 1)])
    data.main()
    assert capsys.readouterr().out == written


def test_it_is_stored_in_bfloat16_and_small():
    with safe_open(tiny() / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert sum(p.stat().st_size for p in tiny().iterdir()) < 6e6


def test_it_looks_up_keys_in_the_task_of_that_name():
    """Task `dict-key`, written with the quotes that the model has read: 5 entries, asked for one at a time."""
    model, task = rb.create("model", "qwen", checkpoint=TINY), rb.create("task", "dict-key", quotes="single")
    found = trial(model, task, split="test", n=100)
    assert found.overall["choice"].value > 0.9
    assert min(case["choice"].value for case in found.cases.values()) > 0.9
    assert found.overall["shuffled_choice"].value < 0.6
