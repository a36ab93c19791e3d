"""The measures of `fast` by hand (sae verification cases 16 and 23)."""

import math
import random

import pytest
import torch
from reprbasis_evaluators.fast import by_dialogue, log2

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.kits.intervals import Estimate, mean
from reprbasis.kits.tokenwise import cross_entropy
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.testing.toys import ToyDictionary, toy_model, toy_registry


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Dialogues of different lengths under one system prompt."""
    model = toy_model()
    words = [piece.strip() for piece in model.tokenizer.pieces[10:20]]
    rng = random.Random(0)

    def say(role, most):
        return Message(role, " ".join(rng.choices(words, k=rng.randint(2, most))))

    system = Message("system", " ".join(words[:2]))
    talks = [Example(messages=(system, say("user", 9), say("assistant", 6)), key=str(i)) for i in range(60)]
    acts = rb.harvest(model, talks, tokens=10_000, held_out=0.2, dtype="float32", folder=tmp_path_factory.mktemp("acts"))
    return model, acts


def evaluate(world, weight):
    """`fast` for the dictionary that keeps the span of the rows of `weight`."""
    model, activations = world
    normaliser = Normaliser.fit("affine", activations.sites, activations.stats)
    learner = toy_registry().create("learner", "toy-dictionary", width=len(weight))
    dictionary = ToyDictionary(weight, weight.clone(), torch.zeros(weight.shape[1]), rectify=False)
    basis = Basis(activations.sites, normaliser, dictionary, learner)
    evaluator = rb.create("evaluator", "fast", tokens=150, resamples=200, untrained=False)
    return evaluator.evaluate(EvaluationInputs(model, basis, activations))


def test_two_dialogues_by_hand():
    error = torch.tensor([4.0, 2.0, *[1.0] * 8])
    owner = torch.tensor([7] * 2 + [3] * 8)
    assert by_dialogue(error, owner).value == pytest.approx((3 + 1) / 2, abs=1e-9)  # each dialogue weighs the same
    assert mean(error, owner).value == pytest.approx(14 / 10, abs=1e-9)  # each token does
    assert by_dialogue(error, owner).n == 2
    assert by_dialogue(error[:1], owner[:1]).low is None


def test_the_paper_prints_logarithms():
    assert pytest.approx(0.00115299, abs=1e-8) == 2**-9.7604
    shown = log2(Estimate(0.00115299, 0.0005, 0.25, 10, 5))
    assert shown.value == pytest.approx(-9.7604, abs=1e-4)
    assert (shown.low, shown.high) == (math.log2(0.0005), -2)
    assert log2(Estimate(0.0, None, None, 1, 1)).value == -100


def test_errors_by_hand(world):
    """Three coordinates are kept; what is lost is counted dialogue by dialogue."""
    model, activations = world
    found = evaluate(world, torch.eye(model.info.d_model)[:3])
    sequences = activations.sequences("held-out", 150)
    new = activations.unseen(sequences)
    for site in model.info.sites:
        losses = []
        for s in sequences:
            x = model.forward(TokenBatch.pad([s]), capture=[site])[site][0]
            losses.append((x - activations.stats.mean[site]).double().square()[:, 3:].sum(1) / model.info.d_model)
        among = {"mse": [torch.ones(len(s), dtype=torch.bool) for s in sequences],
                 "mse_st": [s.flags["special"] for s in sequences]}
        for name, masks in among.items():
            parts = {"": masks, "_from1": [m & (torch.arange(len(m)) > 0) for m in masks],
                     "_new": [m & n & (torch.arange(len(m)) > 0) for m, n in zip(masks, new, strict=True)]}
            for part, where in parts.items():
                kept = [loss[w] for loss, w in zip(losses, where, strict=True) if w.any()]
                if kept:
                    for weight, value in (("", float(torch.stack([k.mean() for k in kept]).mean())),
                                          ("_token", float(torch.cat(kept).mean()))):
                        got = found.get(f"{name}{weight}{part}", condition="global", site=str(site))
                        assert got.value == pytest.approx(value, rel=1e-4), (site, name, weight, part)
                        bits = found.get(f"{name}{weight}{part}_log2", condition="global", site=str(site)).value
                        assert bits == pytest.approx(math.log2(value), abs=1e-3)
    names = ("mse", "mse_token", "mse_st", "mse_from1", "mse_new", "mse_st_new")
    assert len({found.get(n, condition="global", site="resid.0").value for n in names}) == len(names)


def test_delta_loss_by_hand(world):
    model, activations = world
    found = evaluate(world, torch.eye(model.info.d_model)[:3])
    for site in ("resid.0", "attn_out.1"):
        m = {n: found.get(n, condition="global", site=site) for n in ("ce", "delta_loss", "ce_recovered")}
        clean = 0.0
        for s in activations.sequences("held-out", 150):
            batch = TokenBatch.pad([s])
            clean += float(cross_entropy(model.forward(batch).logits, batch)[activations.unseen([s])[0][:-1]].sum())
        clean /= m["ce"].n
        assert m["delta_loss"].value == pytest.approx((m["ce"].value - clean) / clean, rel=1e-3, abs=1e-5)
        lost = found.get("ce", condition="mean", site=site).value - clean
        assert m["ce_recovered"].value == pytest.approx(1 - (m["ce"].value - clean) / lost, abs=1e-3)


def test_the_identity_loses_nothing_and_the_mean_is_the_mean(world):
    d = world[0].info.d_model
    for weight, recovered in ((torch.eye(d), 1), (torch.zeros(2, d), 0)):
        found = evaluate(world, weight)
        for site in map(str, world[0].info.sites):
            assert found.get("ce_recovered", condition="global", site=site).value == pytest.approx(recovered, abs=1e-3)
            if recovered:
                assert found.get("delta_loss", condition="global", site=site).value == pytest.approx(0, abs=1e-5)
                assert found.get("kl", condition="global", site=site).value == pytest.approx(0, abs=1e-5)
                assert found.get("fvu", condition="global", site=site).value == pytest.approx(0, abs=1e-5)
            else:
                for name in ("mse", "mse_st_token_from1", "fvu", "fvu_first", "delta_loss"):
                    of = [found.get(name, condition=c, site=site).value for c in ("global", "mean")]
                    assert of[0] == pytest.approx(of[1], rel=1e-4, abs=1e-6)


def test_a_dense_code_raises_the_alarm(world):
    d = world[0].info.d_model
    assert any("DENSITY ALARM" in note for note in evaluate(world, torch.eye(d)).notes)
    assert not any("DENSITY ALARM" in note for note in evaluate(world, torch.zeros(2, d)).notes)
