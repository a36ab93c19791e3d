"""Entropy of sets where it is known, and the prompts of the three designs."""

import math

import pytest
import torch
from reprbasis_entropy.config import ICLConfig
from reprbasis_entropy.icl import DESIGNS, ICLEvaluator, prompts
from reprbasis_entropy.measure import entropy_over_groups, set_entropy

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.testing.toys import ToyDictionary, toy_activations, toy_model, toy_registry, trained_basis

SITE = rb.Site("resid", 0)
PAIRS = [(f"q{i}", f"a{i}") for i in range(30)]


def positive_part(d):
    """A basis whose latents are the positive coordinates: codes of x in {0, 1} are x itself."""
    learner = toy_registry().create("learner", "toy-dictionary", width=d, rectify=True)
    return Basis([SITE], Normaliser(torch.zeros(1, d), torch.ones(1)),
                 ToyDictionary(torch.eye(d), torch.eye(d), torch.zeros(d), rectify=True), learner)


def bits(n, rates, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, len(rates), generator=g) < torch.tensor(rates)).float()


def test_a_set_of_independent_bits():
    rates = [0.5] * 4 + [0.1] * 4 + [0.0]
    found = set_entropy(positive_part(9), SITE, bits(20_000, rates))
    want = 4 + 4 * 0.46900
    assert found.entropy.value == pytest.approx(want, abs=0.03)
    assert found.entropy.low < want < found.entropy.high
    assert found.code.tree == pytest.approx(want, abs=0.04)
    assert found.code.joint == pytest.approx(want, abs=0.04)
    assert found.l0.value == pytest.approx(2.4, abs=0.03)
    assert found.fvu.value == pytest.approx(0, abs=1e-9)
    assert found.code.live == 8


def test_copies_count_in_the_sum_and_not_in_the_tree():
    x = bits(20_000, [0.5] * 3)
    found = set_entropy(positive_part(6), SITE, torch.cat([x, x], 1))
    assert found.entropy.value == pytest.approx(6, abs=0.01)
    assert found.code.tree == pytest.approx(3, abs=0.01)
    assert found.code.joint == pytest.approx(3, abs=0.01)


def test_the_interval_covers_at_its_level():
    """200 sets of 40 groups of 10 equal rows: about 95 % of the intervals hold the value of the many."""
    rate, hits = 0.3, 0
    want = -rate * math.log2(rate) - (1 - rate) * math.log2(1 - rate)
    for seed in range(200):
        on = bits(40, [rate] * 5, seed).repeat_interleave(10, 0).bool()
        found = entropy_over_groups(on, torch.arange(40).repeat_interleave(10))
        hits += found.low <= 5 * want <= found.high
    assert 165 <= hits <= 200
    assert entropy_over_groups(on, torch.zeros(400)).low is None


@pytest.mark.parametrize("shots", [0, 1, 3, 8])
def test_demonstrations_are_drawn_for_each_prompt(shots):
    answers = dict(PAIRS)
    made = {d: prompts(PAIRS, shots, 20, d, torch.Generator().manual_seed(1)) for d in DESIGNS}
    for p in (p for many in made.values() for p in many):
        assert len(p.demonstrations) == shots
        assert p.query not in [q for q, _ in p.demonstrations]
        assert answers[p.query] == p.answer
        assert p.text.splitlines() == [*(f"{q}: {a}" for q, a in p.demonstrations), f"{p.query}:"]
    assert all(answers[q] == a for d in ("varied", "fixed") for p in made[d] for q, a in p.demonstrations)
    assert not any(answers[q] == a for p in made["shuffled"] for q, a in p.demonstrations)
    assert not any(a == p.answer for p in made["shuffled"] for _, a in p.demonstrations)
    for design, different in (("varied", 20 if shots > 1 else min(shots * 10, 20)), ("fixed", 1)):
        sets = {p.demonstrations for p in made[design]}
        assert len(sets) == 1 if design == "fixed" or shots == 0 else len(sets) >= different
    assert len({p.query for p in made["fixed"]}) > 8


def test_too_few_pairs_are_said():
    with pytest.raises(DataError, match="too few"):
        prompts(PAIRS, 15, 2, "varied", torch.Generator())


def test_the_built_in_pairs_are_pairs():
    pairs = ICLEvaluator(ICLConfig())._pairs()
    assert len(pairs) > 100
    assert len({q for q, _ in pairs}) == len(pairs)
    assert ("France", "Paris") in pairs


def test_prompts_are_read_at_their_last_token():
    """Padding and batching change nothing: each prompt alone gives the same row."""
    model = toy_model()
    words = [p.strip() for p in model.tokenizer.pieces if p.startswith(" ")]  # the toy has room for few others
    few = [(f"q{i}", words[i]) for i in range(5)]
    evaluator = ICLEvaluator(ICLConfig(batch=4))
    batch = [p for k in (0, 2, 1) for p in prompts(few, k, 3, "varied", torch.Generator().manual_seed(0))]
    together, _ = evaluator._run(model, batch, [SITE])
    alone = torch.cat([evaluator._run(model, [p], [SITE])[0][SITE] for p in batch])
    torch.testing.assert_close(together[SITE], alone)


def test_the_evaluator_measures_unseen_tokens_only(tmp_path):
    model = toy_model()
    acts = toy_activations(model, tmp_path)
    basis = trained_basis(acts)
    found = rb.create("evaluator", "entropy", tokens=90).evaluate(EvaluationInputs(model, basis, acts))
    sequences = [s.cut(128) for s in acts.sequences("held-out", 90)]
    fresh = torch.cat([new & (torch.arange(len(new)) > 0) for new in acts.unseen(sequences)])
    for site in basis.sites:
        x = torch.cat([model.forward(TokenBatch.pad([s]), capture=[site])[site][0] for s in sequences])[fresh]
        group = torch.cat([torch.full((len(s),), s.sequence) for s in sequences])[fresh]
        want = set_entropy(basis, site, x, group=group, centre=acts.stats.mean[site])
        for name, value in (("entropy", want.entropy.value), ("l0", want.l0.value), ("fvu", want.fvu.value)):
            got = found.get(name, condition="global", site=str(site))
            assert got.value == pytest.approx(value, rel=1e-4), (site, name)
            assert got.n == int(fresh.sum())
    shares = {name: found.get(name, condition="global").value for name in ("dense_share", "dead_share")}
    assert all(0 <= v <= 1 for v in shares.values())


