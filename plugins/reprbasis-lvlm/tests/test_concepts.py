import pytest
import torch
from reprbasis_lvlm.auroc import auroc, resampled
from reprbasis_lvlm.labels import patches, words

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.tokens import TokenSequence
from reprbasis.testing import EvaluatorContract
from reprbasis.testing.toys import toy_basis


class TestConcepts(EvaluatorContract):
    name, config = "concepts", {"groups": {"word": ["w1", "w2", "w3", "w4"]}, "resamples": 100}


def test_auroc_is_the_share_of_ordered_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60, 4), generator=generator).float()  # with ties
    positive = torch.rand(60, 2, generator=generator) < 0.3
    for k in range(4):
        for label in range(2):
            high, low = scores[positive[:, label], k], scores[~positive[:, label], k]
            expected = (high[:, None] > low).double().mean() + 0.5 * (high[:, None] == low).double().mean()
            assert float(auroc(scores, positive)[k, label]) == pytest.approx(float(expected))


def test_resampled_areas_lie_around_the_area_and_follow_the_groups():
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(400, generator=generator) < 0.5
    scores = torch.randn(400, generator=generator) + positive
    value = float(auroc(scores[:, None], positive[:, None]))
    alone = resampled(scores, positive, torch.arange(400), 500, torch.Generator().manual_seed(1))
    assert float(alone.mean()) == pytest.approx(value, abs=0.01)
    twins = [t.repeat(2) for t in (scores, positive, torch.arange(400))]
    again = resampled(*twins, 500, torch.Generator().manual_seed(1))
    assert torch.allclose(again, alone), "a token and its copy in one group say no more than the token"


def test_patches_go_by_covered_area():
    flags = {"image": torch.tensor([0, 1, 1, 1, 1, 0]).bool(), "special": torch.zeros(6).bool()}
    sequence = TokenSequence(torch.arange(6), flags, key="a", extra={"image_grid": torch.tensor([[2, 2]])})
    regions = {"a": [{"image": 0, "labels": ["red", "ring"], "box": [0.0, 0.0, 0.8, 0.5]},
                     {"image": 0, "labels": ["blue"], "box": [0.5, 0.5, 1.0, 1.0]}]}
    found = patches([sequence], regions, ("red", "blue"), 0.5)
    assert found.token.tolist() == [1, 2, 4]
    assert found.label.tolist() == [0, 0, 1]
    assert found.unit.tolist() == [0, 0, 1]
    assert patches([sequence], regions, ("red", "blue"), 0.7).token.tolist() == [1, 4]


def test_words_are_found_outside_templates_and_images():
    ids = torch.tensor([1, 2, 3, 2, 1])
    flags = {"special": torch.tensor([1, 0, 0, 0, 0]).bool(), "image": torch.tensor([0, 0, 0, 1, 0]).bool()}
    found = words([TokenSequence(ids, flags)], ["", "red", " blue", " dog"], ("blue", "red"))
    assert found.token.tolist() == [1, 4]
    assert found.label.tolist() == [0, 1]


def test_means_tell_colours_apart_where_they_were_taken(tmp_path):
    """On the trained model: directions between means of image tokens tell colours in images, those of words tell words."""
    model = rb.create("model", "lvlm")
    scenes = {"count": 300, "objects": 1}
    acts = rb.harvest(model, rb.create("corpus", "scenes", **scenes), sites="embed", tokens=12000, held_out=0.4, folder=tmp_path)
    colours = ("red", "green", "blue", "yellow", "pink", "white")
    evaluator = rb.create("evaluator", "concepts", corpus={"use": "scenes", **scenes}, groups={"colour": colours}, resamples=100)
    found = evaluator.evaluate(EvaluationInputs(model, toy_basis(model, "embed"), acts))
    value = {(m.name, m.condition): m.value for m in found.measurements}
    assert value["auroc_image", "means, by image"] > 0.97
    assert value["auroc_word", "means, by word"] > 0.95
    assert value["auroc_image", "shuffled"] < 0.7
    for condition in ("means, by image", "means, by word"):
        assert min(m.n for m in found.measurements if m.condition == condition) > 20
