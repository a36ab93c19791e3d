"""Metrics against numbers worked out by hand."""

import math

import pytest
import torch
from reprbasis_editbench import metrics


def test_extraction_strength_and_memorization_of_a_broken_end():
    right = torch.tensor([True, True, False])
    assert metrics.extraction_strength(right) == 0
    assert metrics.extraction_strength(right, compat=True) == pytest.approx(1 / 3)
    assert metrics.exact_memorization(right) == pytest.approx(2 / 3)
    assert metrics.extraction_strength(torch.tensor([False, True, True, True])) == 0.75
    assert metrics.extraction_strength(torch.tensor([True, True])) == 1


def test_privleak_is_zero_where_the_attack_finds_as_much_as_in_the_retain_model():
    assert metrics.privleak(0.5, 0.5) == 0
    assert metrics.privleak(1.0, 0.5) == -100
    assert metrics.privleak(0.0, 0.5) == 100


def test_forget_quality_of_identical_models():
    ratios = torch.rand(20, generator=torch.Generator().manual_seed(0))
    assert metrics.forget_quality(ratios, ratios) == (1, 0)
    p, distance = metrics.forget_quality(ratios, ratios + 2)
    assert p < 1e-6
    assert distance == 1


def test_truth_ratio_is_symmetric_and_one_where_nothing_is_known():
    right, wrong = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [3.0, 5.0]])
    ratios = metrics.truth_ratio(right, wrong)
    assert ratios.tolist() == pytest.approx([1, math.exp(-2)])
    assert metrics.truth_ratio_forget(ratios) == metrics.truth_ratio_forget(1 / ratios)
    assert metrics.truth_ratio_forget(torch.ones(3)) == 1
    assert metrics.truth_ratio_retain(torch.tensor([0.0, 2.0])) == 0.5
    assert metrics.truth_ratio_prob_mean(torch.ones(2), torch.ones(2, 3)) == 0.5


def test_utility_is_zero_if_one_part_is():
    assert metrics.model_utility({"a": 1.0, "b": 0.0}) == 0
    assert metrics.model_utility({"a": 1.0, "b": 0.5}) == pytest.approx(2 / 3)


def test_probabilities():
    assert metrics.prob(torch.tensor([math.log(2), math.log(8)])) == pytest.approx(0.25)
    assert metrics.prob_w_options(0.3, [0.1, 0.2]) == pytest.approx(0.5)


def test_auc_is_one_where_forgotten_items_still_look_trained_on():
    assert metrics.auc([0.1, 0.2], [0.8, 0.9]) == 1
    assert metrics.auc([0.8, 0.9], [0.1, 0.2]) == 0
    assert metrics.auc([0.5, 0.5], [0.5, 0.5]) == 0.5


def test_attack_scores():
    log_probs = torch.tensor([-1.0, -2.0, -3.0, -6.0, -8.0])
    assert metrics.mia_loss(log_probs) == 4
    assert metrics.mia_min_k(log_probs, 0.4) == 7
    assert metrics.mia_zlib(log_probs, "aaaaaaaaaaaaaaaaaaaa") > metrics.mia_zlib(log_probs, "a quick brown fox, jumping")
    even = torch.zeros(3, 10)
    assert metrics.mia_min_k_plus_plus(even, torch.tensor([0, 1, 2])) == pytest.approx(0, abs=1e-3)


def test_rouge():
    found = metrics.rouge_l("the cat sat on the mat", "The cat lay on a mat.")
    assert found["recall"] == pytest.approx(4 / 6)
    assert metrics.rouge_l("a b", "a b c d")["f1"] == pytest.approx(2 * 0.5 / 1.5)
    assert metrics.rouge_l("a", "b") == {"recall": 0, "f1": 0}


def test_geometric_mean():
    assert metrics.geometric_mean([0.25, 1.0]) == pytest.approx(0.5)
    assert metrics.geometric_mean([0.0, 1.0]) == 0
