"""The visual question: two images that differ in one thing, and positions in the tokens of the model at hand."""

from itertools import islice

import numpy as np
import pytest
import torch
from reprbasis_lvlm.config import LvlmConfig
from reprbasis_lvlm.images import load
from reprbasis_lvlm.model import LvlmAdapter
from reprbasis_lvlm.tiny import checkpoint

import reprbasis as rb
from reprbasis.errors import ConfigError, DataError
from reprbasis.kits.circuits import common_prefix
from reprbasis.runtime.batches import last_logits
from reprbasis.runtime.trial import trial
from reprbasis.sites import Site
from reprbasis.testing import TaskContract

EMBED = Site("embed")


@pytest.fixture(scope="module")
def model():
    return LvlmAdapter(LvlmConfig())


class VisualQuestion(TaskContract):
    __test__ = False
    name = "visual-question"
    most = 40

    @pytest.fixture(autouse=True)
    def _model(self, model):
        self.model = model

    def tokenizer(self):
        return self.model.tokenizer

    def tokens(self, example, tokenizer):
        return self.model.tokenize([example])[0]


class TestColour(VisualQuestion):
    __test__ = True


class TestShape(VisualQuestion):
    __test__ = True
    name, config = "visual-question", {"ask": "shape", "objects": 2}


class TestPlace(VisualQuestion):
    __test__ = True
    name, config = "visual-question", {"ask": "place"}


class TestRival(VisualQuestion):
    __test__ = True
    name, config = "visual-question", {"objects": 3, "rival": True}


class TestRedAndBlueAtOnePlace(VisualQuestion):
    __test__ = True
    name, config = "visual-question", {"colours": ["red", "blue"], "places": ["middle center"]}


def pairs(model, split="train", most=40, **options):
    return list(islice(rb.create("task", "visual-question", **options).pairs(model.tokenizer, split, 0), most))


@pytest.mark.parametrize("ask", ["colour", "shape", "place"])
@pytest.mark.parametrize("objects", [1, 3])
def test_the_images_differ_where_the_object_is_and_nowhere_else(model, ask, objects):
    for pair in pairs(model, most=12, ask=ask, objects=objects):
        assert pair.clean.messages == pair.corrupt.messages
        clean, corrupt = (np.asarray(load(e.images[0], None)) for e in (pair.clean, pair.corrupt))
        differs = (clean != corrupt).any(-1)
        assert differs.any()
        for side in ("clean", "corrupt"):
            row, column = divmod(["top", "middle", "bottom"].index(pair.meta[side]["place"].split()[0]) * 3 +
                                 ["left", "center", "right"].index(pair.meta[side]["place"].split()[1]), 3)
            differs[16 * row:16 * row + 16, 16 * column:16 * column + 16] = False
        assert not differs.any()
        assert {name for name in ("colour", "shape", "place") if pair.meta["clean"][name] != pair.meta["corrupt"][name]} == {ask}


def test_roles_in_the_tokens_of_the_model(model):
    task = rb.create("task", "visual-question", ask="place")
    for pair in islice(task.pairs(model.tokenizer, "train", 0), 30):
        [clean] = model.tokenize([pair.clean])
        roles = task.locate(pair, clean)
        image = clean.flags["image"].nonzero().flatten().tolist()
        assert sorted(roles["object"] + roles["elsewhere"] + roles["background"]) == image
        assert roles["object"]
        assert roles["elsewhere"]
        assert model.tokenizer.decode(clean.ids[list(roles["word"])]).strip() == pair.meta["clean"]["shape"]
        assert roles["end"] == (len(clean) - 1,)


def test_the_object_is_where_the_images_tokens_differ(model):
    """What the projector gives differs most at the tokens of the role `object`."""
    for item in rb.batches(model, rb.create("task", "visual-question"), n=32):
        clean, corrupt = (model.forward(side, capture=[EMBED], logits="none")[EMBED] for side in (item.clean, item.corrupt))
        moved = (clean - corrupt).norm(dim=-1)
        here, there = moved.gather(1, item.roles["object"]).mean(), moved.gather(1, item.roles["background"]).mean()
        assert here > 2 * there
        assert not bool((moved * ~item.clean.flag("image")).any())


@pytest.mark.parametrize("ask", ["colour", "shape", "place"])
def test_with_a_rival_both_answers_are_in_both_images_and_the_word_decides(model, ask):
    task = rb.create("task", "visual-question", ask=ask, objects=3, rival=True)
    right = 0
    for pair in islice(task.pairs(model.tokenizer, "test", 0), 40):
        clean, corrupt = (e.meta["regions"] for e in (pair.clean, pair.corrupt))
        if ask != "place":
            at = ["colour", "shape"].index(ask)
            assert {r["labels"][at] for r in clean} == {r["labels"][at] for r in corrupt}
            roles = task.locate(pair, model.tokenize([pair.clean])[0])
            assert roles["rival"]
            assert not set(roles["rival"]) & set(roles["object"])
        (text, answer), *_ = pair.meta["others"]
        assert (text != pair.clean.messages[0].content, answer) == (True, pair.meta["wrong"])
        [logits] = last_logits(model, model.batch([pair.clean]))
        right += bool(logits[pair.answer[0]] > logits[pair.wrong[0]])
    assert right >= 36


def test_splits_share_no_shape_at_a_place(model):
    found = [{(p.meta["clean"]["shape"], p.meta["clean"]["place"]) for p in pairs(model, split, 200)}
             for split in ("train", "validation", "test")]
    assert not any(a & b for i, a in enumerate(found) for b in found[:i])
    assert len(set.union(*found)) == 45


def test_the_tiny_model_answers_and_a_blinded_one_does_not(model):
    found = trial(model, rb.create("task", "visual-question"), split="test", n=60)
    assert found.overall["choice"].value > 0.95
    assert found.overall["shuffled_choice"].value < 0.75
    assert all(e.prompt.count("[image: 36 tokens]What") == 1 for e in found.examples)
    blind = [type(p)(p.corrupt, p.clean, p.answer, p.wrong) for p in pairs(model, "test", 60)]
    assert trial(model, blind, n=60).overall["choice"].value < 0.05, "with the other image it gives the other answer"


def test_prompts_that_differ_in_their_image_alone_are_different_prompts(model):
    """Else intervals would draw all of them together."""
    task = rb.create("task", "visual-question", shapes=["square"], places=["top left"], colours=["red", "blue"])
    [item] = rb.batches(model, task, n=8)
    assert len(item.clean.ids.unique(dim=0)) == 1
    assert len(item.clean.shown().unique(dim=0)) == 8
    assert torch.equal(item.clean.take(torch.tensor([2])).shown(), item.clean.shown()[2:3])
    assert not torch.equal(item.clean.shown(), item.corrupt.shown())
    begin = int(item.clean.flag("image")[0].int().argmax())
    assert common_prefix([item]) == begin, "images are no prefix that all prompts share"


@pytest.mark.parametrize("family", ["qwen3-vl", "smolvlm"])
def test_other_families_find_the_object_too(family, tmp_path):
    model = LvlmAdapter(LvlmConfig(checkpoint=str(checkpoint(tmp_path, family))))
    for item in rb.batches(model, rb.create("task", "visual-question", size=12), n=8):
        assert bool(item.clean.flag("image").gather(1, item.roles["object"]).all())


@pytest.mark.parametrize("options", [{"colours": ["red"]}, {"shapes": ["square", "cube"]}])
def test_options_that_ask_for_nothing_are_refused(options):
    with pytest.raises((ConfigError, ValueError)):
        rb.create("task", "visual-question", **options)


def test_a_split_without_combinations_says_so(model):
    with pytest.raises(DataError, match="has no test pairs"):
        pairs(model, "test", shapes=["square"], places=["top left"])
