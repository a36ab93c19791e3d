"""The trained tiny model in the package, measured again."""

import json
from itertools import islice

import pytest
from reprbasis_lvlm.config import LvlmConfig
from reprbasis_lvlm.corpus import example
from reprbasis_lvlm.model import LvlmAdapter, tiny
from reprbasis_lvlm.quiz import Score, quiz
from reprbasis_lvlm.scenes import scenes

from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message


@pytest.fixture(scope="module")
def model():
    return LvlmAdapter(LvlmConfig())


@pytest.mark.parametrize(("objects", "least"), [(1, 0.97), (2, 0.8)])
def test_it_names_what_it_has_never_seen_combined_so(model, objects, least):
    stated = json.loads((tiny() / "recipe.json").read_text())["accuracy"]["objects"][str(objects)]["own"]
    for kind, score in quiz(model, scenes_asked=120, objects=objects, seed=2).items():
        assert score.share > least, kind
        assert abs(score.share - stated[kind]["share"]) < 0.07, kind


@pytest.mark.parametrize(("objects", "sight"), [(1, "noise"), (1, "other"), (2, "noise")])
def test_without_its_image_it_guesses(model, objects, sight):
    for kind, score in quiz(model, scenes_asked=120, objects=objects, seed=2, sight=sight).items():
        assert score.interval[0] < score.chance, (kind, score)
        assert score.share < 0.4, (kind, score)


def test_it_answers_and_ends_its_turn(model):
    right = 0
    found = list(islice((s for s in scenes("test", 3) if len(s.things) == 1), 20))
    for scene in found:
        question = scene.things[0].questions()[0]
        asked = example(scene, [question], "")
        prompt = Example(messages=(Message("user", question.text, images=(0,)),), images=asked.images, add_prompt=True)
        [whole] = model.generate(model.tokenize([prompt]), sampling=Sampling(max_new=5))
        new = whole.flags["generated"]
        right += model.tokenizer.decode(whole.ids[new & ~whole.flags["special"]]) == question.answer
        assert bool(whole.flags["special"][-1]), "it ends its turn"
    assert right >= 17


def test_intervals_of_wilson():
    low, high = Score(8, 10, 0.5).interval
    assert (round(low, 2), round(high, 2)) == (0.49, 0.94)
