"""Weights changed for a while, and probes of a model."""

import pytest
import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.probes import MEASURES, Neutral, rows
from reprbasis.kits.tuning import inner, mlp_reads, restored
from reprbasis.sites import Site
from reprbasis.testing.toys import contrast_batches, toy_model


def test_weights_come_back_bit_for_bit_whatever_happens():
    model = toy_model()
    before = {n: p.clone() for n, p in model.parameters().items()}
    batch = contrast_batches(model)[0].clean

    def train():
        with restored(model, ["0.W_out"]) as (weights, kept):
            weights["0.W_out"].requires_grad_()
            model.forward(batch, grad=True).logits.sum().backward()
            assert weights["0.W_out"].grad is not None
            assert torch.equal(kept["0.W_out"], before["0.W_out"])
            with torch.no_grad():
                weights["0.W_out"].mul_(3)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        train()
    for name, p in model.parameters().items():
        assert torch.equal(p, before[name])
        assert not p.requires_grad
        assert p.grad is None


def test_inner_weights_have_no_row_for_a_token():
    assert set(toy_model().parameters()) - set(inner(toy_model())) == {"embed", "unembed"}


def test_what_an_mlp_reads_gives_what_it_writes():
    model = toy_model()
    batch = contrast_batches(model)[0].clean
    written = model.forward(batch, capture=[Site("mlp_out", 1)])["mlp_out.1"]
    assert torch.allclose(mlp_reads(model, 1, batch) @ model.mlp(1).W_out.T, written, atol=1e-5)


def test_rows_are_those_of_the_logits():
    model = toy_model()
    given = contrast_batches(model)
    found = rows(model, given)
    logits = torch.cat([model.forward(b.clean, logits="last").logits[:, 0] for b in given])
    answer, wrong = (torch.cat([getattr(b.targets, k)[:, 0] for b in given]) for k in ("answer", "wrong"))
    at = torch.arange(len(logits))
    assert torch.allclose(found["logit_diff"], (logits[at, answer] - logits[at, wrong]).double(), atol=1e-6)
    assert torch.allclose(found["wrong_prob"], logits.softmax(1)[at, wrong].double(), atol=1e-6)
    assert torch.equal(found["answer_top1"].bool(), logits.argmax(1) == answer)
    assert found.keys() == {*MEASURES, "top"} - {"kept"}


def test_rows_need_something_to_compare_with():
    model = toy_model()
    item = contrast_batches(model)[0]
    with pytest.raises(DataError, match="nothing to compare"):
        rows(model, [ContrastBatch(item.clean, None, Targets(item.targets.answer), {})])


def test_divergence_is_that_of_the_distributions():
    model, texts = toy_model(), [Example(text=" w1 w2 w3", key="a"), Example(text=" w4 w5", key="b")]
    neutral = Neutral(model, texts)
    assert neutral.group.tolist() == [0, 0, 1]
    assert torch.equal(neutral.kl(model), torch.zeros(3, dtype=torch.float64))
    batch = model.batch(texts)
    before = model.forward(batch).logits.log_softmax(-1)
    with restored(model, ["1.W_out"]) as (weights, _):
        weights["1.W_out"].mul_(1.5)
        now = model.forward(batch).logits.log_softmax(-1)
        found = neutral.kl(model)
    expected = (before.exp() * (before - now)).sum(-1)[batch.mask & (batch.positions > 0)]
    assert torch.allclose(found, expected.double(), atol=1e-6)
    assert len(Neutral(model, []).kl(model)) == 0
