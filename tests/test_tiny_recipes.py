"""The recipes of the tiny models run end to end, and the seed decides every byte (a few steps; accuracy is tested elsewhere)."""

import json
import sys
from pathlib import Path

import pytest

import reprbasis as rb
from reprbasis.interfaces.tokens import Example

RECIPES = Path(__file__).parents[1] / "examples" / "tiny_models"
WRITTEN = ("model.safetensors", "tokenizer.json", "config.json")


@pytest.fixture
def train(monkeypatch, tmp_path):
    """(recipe, name, arguments) -> the checkpoint's folder."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def run(recipe, name, *arguments):
        import text_train
        import vlm_train

        monkeypatch.setattr(sys, "argv", [recipe, str(tmp_path / name), *map(str, arguments)])
        {"text": text_train, "vlm": vlm_train}[recipe].main()
        return tmp_path / name

    return run


def written(folder):
    """What was written: bytes of the checkpoint, and the hashes of the data it was trained on."""
    recipe = json.loads((folder / "recipe.json").read_text())
    data = [stage["data_sha256"] for stage in recipe["stages"]] if "stages" in recipe else recipe["data_sha256"]
    return [(folder / name).read_bytes() for name in WRITTEN], data


TEXT = ("--share", 0.004, "--n", 8)
VISION = ("--threads", 1, "--tower-steps", 2, "--steps", 2, "--batch", 4)


@pytest.mark.parametrize(("recipe", "arguments"), [("text", TEXT), ("vlm", VISION)])
def test_the_same_seed_gives_the_same_bytes(train, recipe, arguments, capsys):
    once, again, other = (written(train(recipe, f"{i}", *arguments, "--seed", seed)) for i, seed in enumerate((0, 0, 1)))
    assert once == again
    assert once[0][0] != other[0][0]
    assert once[1] != other[1], "the data follows the seed"


def test_the_text_recipe_trains_a_llama_too(train, capsys):
    folder = train("text", "llama", *TEXT, "--architecture", "llama")
    model = rb.create("model", "llama", checkpoint=str(folder))
    assert (model.info.n_layers, model.info.d_model) == (4, 192)
    assert model.forward(model.batch([Example(text="boat, lamp | boat ->")])).logits.isfinite().all()
    assert json.loads((folder / "recipe.json").read_text())["architecture"] == "llama"


@pytest.mark.real
def test_the_vision_model_was_trained_on_this_data(monkeypatch):
    """All images and questions of the shipped checkpoint, drawn again (half a minute)."""
    monkeypatch.syspath_prepend(str(RECIPES))
    import vlm_train
    from reprbasis_lvlm.model import tiny

    noted = json.loads((tiny() / "recipe.json").read_text())
    assert vlm_train.data_hash(noted) == noted["data_sha256"]
