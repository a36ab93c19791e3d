"""Every metric against its closed form on logits made by hand."""

import math

import pytest
import torch

import reprbasis as rb
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ForwardResult
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence

BATCH = TokenBatch.pad([TokenSequence(torch.tensor([0, 1, 2]), sequence=0), TokenSequence(torch.tensor([2, 0]), sequence=1)])


def measure(name, logits, **targets):
    batch = BATCH if logits.shape[0] == 2 else TokenBatch.pad([TokenSequence(torch.arange(logits.shape[1]))])
    given = Targets(**{k: torch.as_tensor(v) for k, v in targets.items()})
    return rb.create("metric", name)(ForwardResult({}, logits, batch), batch, given).tolist()


def log(*p):
    return torch.tensor(p).log()


def test_cross_entropy_of_known_probabilities():
    logits = torch.zeros(2, 3, 4)  # uniform over four tokens: log 4
    assert measure("ce", logits) == pytest.approx([math.log(4)] * 2)
    logits[0, 0] = log(0.1, 0.5, 0.2, 0.2)  # token 1 follows
    logits[0, 1] = log(0.1, 0.1, 0.7, 0.1)  # token 2 follows
    logits[1, 0] = log(0.25, 0.25, 0.4, 0.1)  # token 0 follows
    expected = [-(math.log(0.5) + math.log(0.7)) / 2, -math.log(0.25)]
    assert measure("ce", logits + 7.0) == pytest.approx(expected, rel=1e-5)  # a constant in the logits changes nothing


def test_cross_entropy_of_a_packed_row_is_the_mean_over_both():
    one, two = TokenSequence(torch.tensor([0, 1]), sequence=0), TokenSequence(torch.tensor([3, 2, 0]), sequence=1)
    [batch] = TokenBatch.pack([one, two], length=5, rows=1)
    logits = torch.zeros(1, 5, 4)
    logits[0, 0], logits[0, 1] = log(0.1, 0.5, 0.2, 0.2), torch.tensor([90.0, 0, 0, 0])  # the second is the seam
    logits[0, 2], logits[0, 3] = log(0.1, 0.1, 0.7, 0.1), log(0.2, 0.1, 0.6, 0.1)
    [value] = rb.create("metric", "ce")(ForwardResult({}, logits, batch), batch, Targets()).tolist()
    assert value == pytest.approx(-(math.log(0.5) + math.log(0.7) + math.log(0.2)) / 3)


def test_kl_of_known_distributions():
    p, q = (0.5, 0.25, 0.125, 0.125), (0.25, 0.25, 0.25, 0.25)
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    reference, logits = log(*p).expand(2, 3, 4), log(*q).expand(2, 3, 4)
    assert measure("kl", logits, reference=reference) == pytest.approx([divergence] * 2)
    assert measure("kl", reference, reference=logits) == pytest.approx(
        [sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))] * 2)  # not symmetric: the reference comes first
    assert measure("kl", reference, reference=reference) == pytest.approx([0.0, 0.0], abs=1e-7)


def test_metrics_of_the_last_token():
    logits = torch.zeros(2, 3, 4)
    logits[0, 2] = log(0.4, 0.3, 0.2, 0.1)
    logits[1, 1] = log(0.1, 0.2, 0.3, 0.4)  # the second row ends at token 1
    logits[1, 2] = 100.0 * torch.eye(4)[0]  # padding
    answer, wrong = [[1, 0], [1, -1]], [[2, 3], [3, -1]]
    assert measure("probability", logits, answer=answer) == pytest.approx([0.7, 0.2])
    assert measure("accuracy", logits, answer=answer) == [1.0, 0.0]
    assert measure("logit-diff", logits, answer=answer, wrong=wrong) == pytest.approx([math.log(2), -math.log(2)])
    assert measure("forced-choice", logits, answer=answer, wrong=wrong) == [1.0, 0.0]
    assert measure("forced-choice", logits * 0, answer=answer, wrong=wrong) == [0.0, 0.0]  # a tie is no success


def test_the_gradient_of_the_logit_difference_is_one_and_minus_one():
    logits = torch.zeros(2, 3, 4, requires_grad=True)
    targets = Targets(torch.tensor([[1], [0]]), torch.tensor([[2], [3]]))
    rb.create("metric", "logit-diff")(ForwardResult({}, logits, BATCH), BATCH, targets).sum().backward()
    expected = torch.zeros(2, 3, 4)
    expected[0, 2, 1], expected[0, 2, 2], expected[1, 1, 0], expected[1, 1, 3] = 1, -1, 1, -1
    assert torch.equal(logits.grad, expected)


def test_half_precision_logits_are_widened():
    logits = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    found = rb.create("metric", "probability")(ForwardResult({}, logits, BATCH), BATCH, Targets(torch.tensor([[1], [2]])))
    assert found.dtype == torch.float32
    assert found.tolist() == [0.25, 0.25]
